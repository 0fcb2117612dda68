"""The report in a real browser: it renders, sorts, slides, and complains of nothing."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from autoseg.evaluation.evaluate import fold_rows, gather
from autoseg.evaluation.report.contents import cross_validation_report
from autoseg.evaluation.report.files import Trained, write_report
from tests.browser import Browser, chromium
from tests.evaluation.report.report_pages import FINGERPRINT, write_models
from tests.evaluation.scores import HIPPOCAMPUS
from tests.forking import fine_pictures

__all__ = ["fine_pictures"]

MISSING = "without a prediction"
SECTIONS = [
    *("scores", "cases", "viewer", "worst", "training", "data", "plan", "methods", "run"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = write_models(tmp_path_factory.mktemp("models") / "Task004_Hippocampus" / "plan")
    validation = gather(models)
    validation.folds[1] = replace(validation.folds[1], missing=(MISSING,))
    trained, tables = Trained(models, HIPPOCAMPUS), {"Dice of the folds": fold_rows(validation)}
    exhibits = trained.exhibits(validation.combined)
    report = cross_validation_report(trained, validation, exhibits, models / FINGERPRINT, tables, 1)
    out = models / "report.html"
    write_report(out, report)
    return out


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def browser(started: Browser, page: Path) -> Iterator[Browser]:
    """The page, freshly opened; whatever a test does, there may be no complaint."""
    started.look(1280)
    started.open(page)
    yield started
    assert started.complaints == []
    assert started.requests == [page.resolve().as_uri()]


def column(browser: Browser, place: int) -> list[str]:
    """The cells of the table of cases that are shown."""
    return list(
        browser.run(
            "[...document.querySelectorAll('#all-cases tbody tr:not([hidden])')]"
            f".map((row) => row.cells[{place}].textContent.trim())"
        )
    )


def button(place: int) -> str:
    return f"#all-cases thead th:nth-child({place + 1}) button"


def orders(browser: Browser) -> list[str]:
    return list(
        browser.run(
            "[...document.querySelectorAll('#all-cases thead th')]"
            ".map((heading) => heading.getAttribute('aria-sort'))"
        )
    )


def place_of(browser: Browser, name: str) -> int:
    return int(
        browser.run(
            "[...document.querySelectorAll('#all-cases thead th')]"
            f".findIndex((heading) => heading.textContent.trim() === '{name}')"
        )
    )


def test_every_section_is_there_with_all_its_pictures(browser: Browser) -> None:
    assert browser.run("[...document.querySelectorAll('section')].map((s) => s.id)") == SECTIONS
    links = browser.run(
        "[...document.querySelectorAll('nav a')].map((a) => a.getAttribute('href'))"
    )
    assert links == [f"#{name}" for name in SECTIONS]
    pictures, empty = browser.run(
        "(async () => { const all = [...document.images];"
        "all.forEach((image) => { image.loading = 'eager'; });"
        "await Promise.all(all.map((image) => image.decode()));"
        "return [all.length, all.filter((image) => !image.naturalWidth).length]; })()"
    )
    assert pictures == 3 + 4 + 2  # cases, scores, training
    assert empty == 0


def test_worst_first_without_a_click(browser: Browser) -> None:
    names = ["hippocampus_008", "hippocampus_003", "hippocampus_017", MISSING]
    assert column(browser, 0) == names
    assert orders(browser)[place_of(browser, "Dice")] == "ascending"


def test_clicks_sort_numbers_as_numbers_and_missing_ones_last(browser: Browser) -> None:
    place = place_of(browser, "HD95 (mm)")
    for expected in ("descending", "ascending", "descending"):  # the worst are the first to come
        browser.click(button(place))
        found = column(browser, place)
        assert found[-1] == "-"
        values = [float(text) for text in found[:-1]]
        assert values == sorted(values, reverse=expected == "descending")
        assert len(set(values)) == 3
        assert orders(browser)[place] == expected
        assert sum(order != "none" for order in orders(browser)) == 1
    message = browser.run("document.getElementById('announcement').textContent")
    assert message == "sorted by HD95 (mm), descending"


def test_ten_is_more_than_nine(browser: Browser) -> None:
    """As words, 10 would come before 9."""
    browser.run(
        "document.querySelectorAll('#all-cases tbody tr:not([hidden])').forEach((row, i) => {"
        "row.cells[2].textContent = row.cells[2].dataset.value = [9, 10, -1, 0.5][i]; })"
    )
    browser.click(button(2))
    assert column(browser, 2) == ["10", "9", "0.5", "-1"]


def test_the_keyboard_sorts(browser: Browser) -> None:
    browser.run(f"document.querySelector('{button(0)}').focus()")
    browser.press("Enter")
    assert column(browser, 0) == sorted(column(browser, 0))
    browser.press(" ")
    assert orders(browser)[0] == "descending"
    assert column(browser, 0) == sorted(column(browser, 0), reverse=True)


def test_a_class_is_chosen(browser: Browser) -> None:
    means = column(browser, 2)
    browser.run(
        "(() => { const choice = document.querySelector('.group'); choice.value = 'Posterior';"
        "choice.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    assert len(column(browser, 2)) == len(means)
    assert column(browser, 2) != means
    browser.click(button(2))
    browser.click(button(2))
    assert len(column(browser, 2)) == len(means)


def test_a_case_is_searched(browser: Browser) -> None:
    browser.run("document.querySelector('.search').focus()")
    browser.send("Input.insertText", text="PUS_01")
    assert column(browser, 0) == ["hippocampus_017"]
    assert browser.run("document.querySelector('.count').textContent") == "1 case"


def opened(browser: Browser) -> str:
    """Scroll to the first viewer, wait until it has started, and return what it draws with."""
    of = "document.querySelector('.viewer')"
    browser.run(f"{of}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    for _ in range(200):
        state = browser.run(f"{of}.dataset.state")
        if state not in (None, "loading"):
            time.sleep(0.3)  # the next frame
            return str(state)
        time.sleep(0.1)
    raise AssertionError("the viewer does not start")


def planes(browser: Browser) -> list[NDArray[np.float64]]:
    """The three planes of the first viewer as pixels (rows, columns, RGB)."""
    content = browser.photograph(".viewer .planes")
    pixels = np.asarray(Image.open(BytesIO(content)).convert("RGB"), float)
    return np.array_split(pixels, 3, axis=1)


def switch(browser: Browser, name: str) -> None:
    browser.click(f'.viewer input[name="{name}"]')
    time.sleep(0.3)


@pytest.mark.parametrize("kind", ["niivue", "slices"])
def test_every_plane_of_the_viewer_is_drawn_and_its_layers_switch(
    started: Browser, page: Path, kind: str
) -> None:
    """The slices are for browsers without WebGL2."""
    started.look(1280)
    started.open(page, "#slices" if kind == "slices" else "")
    assert opened(started) == kind
    for each in planes(started):
        assert each.std() > 20
    coloured = {}
    for name in ("prediction", "reference", "difference"):
        before = planes(started)
        switch(started, name)
        coloured[name] = [np.abs(a - b).max() for a, b in zip(before, planes(started), strict=True)]
        if name == "prediction":  # it is shown first: it is off now
            assert max(np.ptp(each, axis=-1).max() for each in planes(started)) < 60
    assert all(max(found) > 30 for found in coloured.values())
    before = planes(started)
    started.run(
        "(() => { const high = document.querySelector('.viewer input[name=high]');"
        "high.value = Number(high.value) / 3;"
        "high.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    time.sleep(0.3)
    assert np.mean([each.mean() for each in planes(started)]) > 10 + np.mean(
        [each.mean() for each in before]
    )
    assert started.complaints == []
    assert [address.partition("#")[0] for address in started.requests] == [page.resolve().as_uri()]


def test_columns_are_chosen(browser: Browser) -> None:
    shown = (
        "[...document.querySelectorAll('#all-cases thead th')]"
        ".filter((cell) => cell.offsetWidth).map((cell) => cell.dataset.name)"
    )
    first = ["case", "fold", "Dice", "HD95 (mm)", "NSD", "VolumeDifference (ml)"]
    assert browser.run(shown) == first
    browser.run(
        "(() => { const box = document.querySelector("
        '\'[data-for="all-cases"] .columns input[value="Specificity"]\');'
        "box.click(); })()"
    )
    assert browser.run(shown) == [*first[:3], "Specificity", *first[3:]]


def test_it_prints(browser: Browser) -> None:
    content = base64.b64decode(browser.send("Page.printToPDF", printBackground=True)["data"])
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") >= 3
    assert 10_000 < len(content) < 20_000_000


def test_no_number_is_cut_on_a_phone(browser: Browser) -> None:
    browser.look(375)
    cut = browser.run(
        "[...document.querySelectorAll('table td, table th, .figures .value')]"
        ".filter((cell) => cell.offsetWidth && !cell.closest('.visually-hidden'))"
        ".filter((cell) => cell.getBoundingClientRect().right > 375.5"
        " || cell.scrollWidth > cell.clientWidth + 1)"
        ".map((cell) => cell.textContent.trim())"
    )
    assert cut == []


def test_the_first_paint_comes_soon_and_the_page_is_small(browser: Browser, page: Path) -> None:
    browser.photograph("header")
    paint = browser.run("performance.getEntriesByType('paint').map((each) => each.startTime)")
    assert paint
    assert max(paint) < 5000  # 200 on an idle machine
    assert page.stat().st_size < 6_000_000


def test_a_link_leads_to_the_case(browser: Browser) -> None:
    browser.click("#all-cases tbody a")
    assert browser.run("location.hash") == "#case-1"


def brightness(browser: Browser, dark: bool) -> float:
    browser.look(1280, dark)
    return float(np.asarray(Image.open(BytesIO(browser.photograph("header"))).convert("L")).mean())


def test_light_and_dark(browser: Browser) -> None:
    assert brightness(browser, dark=False) > 220
    assert brightness(browser, dark=True) < 60


@pytest.mark.parametrize(("width", "media"), [(360, "screen"), (1280, "screen"), (794, "print")])
def test_nothing_is_wider_than_the_page(browser: Browser, width: int, media: str) -> None:
    browser.look(width, media=media)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_every_control_has_a_name(browser: Browser) -> None:
    """As a screen reader would say it."""
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "slider", "searchbox", "combobox", "link", "image", "table", "region"}
    controls = [node for node in nodes if node.get("role", {}).get("value") in roles]
    assert {node["role"]["value"] for node in controls} == roles
    assert [node for node in controls if not node.get("name", {}).get("value")] == []
