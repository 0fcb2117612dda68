from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autoseg.evaluation.boxes import box_plot
from autoseg.evaluation.report import write_report, write_tables
from autoseg.evaluation.summary import Summary
from tests.evaluation.scores import case, three_cases


class Tags(HTMLParser):
    """Counts tags and keeps where pictures come from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_report_stands_alone(tmp_path: Path) -> None:
    pictures = [tmp_path / "overlay_a.png", tmp_path / "overlay_b.svg"]
    for picture in pictures:
        box_plot(three_cases(), picture)
    out = tmp_path / "report.html"
    write_report(out, "A title", three_cases(), pictures, {"task": "lung"}, {"More": [("h",)]})
    text = out.read_text(encoding="utf-8")
    found = Tags(text)
    assert len(found.sources) == 3
    assert [source.split(";")[0] for source in found.sources] == [
        "data:image/png",
        "data:image/png",
        "data:image/svg+xml",
    ]
    assert not re.search(r"https?://", text)
    assert found.tags.count("table") == 4
    assert "0.8000 ± 0.2000" in text
    assert text.index("overlay_a") < text.index("overlay_b")


def test_names_are_escaped(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    summary = Summary((case("<script>", x=(1, 0, 0, 1)),))
    write_report(out, "<b>", summary, [], {"<i>": "</dl>"})
    found = Tags(out.read_text(encoding="utf-8"))
    assert not {"script", "b", "i"} & set(found.tags)


@pytest.mark.parametrize("folder", ["", "new/folder"])
def test_tables_are_written(tmp_path: Path, folder: str) -> None:
    paths = write_tables(tmp_path / folder, three_cases(), {"Folds": [("fold", "x"), ("0", "1")]})
    assert [p.name for p in paths] == ["summary.json", "table.md", "table.csv", "dice.png"]
    assert all(path.stat().st_size for path in paths)
    headings = [s for s in paths[1].read_text(encoding="utf-8").splitlines() if s.startswith("#")]
    assert headings == [
        *("## Folds", "## Mean of every metric", "## Lesions of all cases", "## Dice")
    ]
    assert Summary.load(paths[0]) == three_cases()
