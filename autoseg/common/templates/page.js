"use strict";

const announcement = document.getElementById("announcement");

function textOf(cell) {
  return cell.textContent.trim();
}

/** Numbers are compared as numbers, text in natural order; missing values come last. */
function compare(a, b, isText, sign) {
  if (isText) return sign * a.localeCompare(b, undefined, { numeric: true });
  if (a === null || b === null) return (a === null) - (b === null);
  return sign * (a - b);
}

function sortBy(table, index, order) {
  const headings = [...table.tHead.rows[0].cells];
  const button = headings[index].querySelector("button");
  const isText = "text" in button.dataset;
  const keyOf = (row) => {
    const cell = row.cells[index];
    if (isText) return textOf(cell);
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [keyOf(row), row]);
  rows.sort((a, b) => compare(a[0], b[0], isText, order === "ascending" ? 1 : -1));
  body.append(...rows.map(([, row]) => row));
  headings.forEach((heading, i) => heading.setAttribute("aria-sort", i === index ? order : "none"));
  announcement.textContent = `sorted by ${textOf(button)}, ${order}`;
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, index) => {
    const button = heading.querySelector("button");
    button.addEventListener("click", () => {
      const other = { ascending: "descending", descending: "ascending" };
      sortBy(table, index, other[heading.getAttribute("aria-sort")] || button.dataset.first);
    });
  });
}

for (const choices of document.querySelectorAll(".choices")) {
  const table = document.getElementById(choices.dataset.for);
  const group = choices.querySelector(".group");
  const search = choices.querySelector(".search");
  const count = choices.querySelector(".count");
  for (const box of choices.querySelectorAll(".columns input")) {
    const cells = table.querySelectorAll(`[data-name="${CSS.escape(box.value)}"]`);
    const toggle = () => cells.forEach((cell) => cell.classList.toggle("unshown", !box.checked));
    box.addEventListener("input", toggle);
    toggle();
  }
  if (!group && !search) continue;
  const filter = () => {
    const text = search ? search.value.trim().toLowerCase() : "";
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const selected = !group || row.dataset.group === group.value;
      row.hidden = !(selected && textOf(row.cells[0]).toLowerCase().includes(text));
      shown += !row.hidden;
    }
    if (count) count.textContent = shown === 1 ? "1 case" : `${shown} cases`;
  };
  for (const control of [group, search]) if (control) control.addEventListener("input", filter);
  filter();
}

for (const button of document.querySelectorAll("button[data-copies]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(source.textContent);
      announcement.textContent = "copied";
    } catch { // not allowed for files in some browsers
      getSelection().selectAllChildren(source);
      announcement.textContent = "selected";
    }
  });
}

/* Collapsed sections are printed, too. */
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open]):not(.columns)")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
