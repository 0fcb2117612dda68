from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from autoseg.common.errors import AutosegError
from autoseg.common.figures import (
    COLOURS,
    LINES,
    colours_of,
    line,
    save_figure,
    save_forms,
)
from tests.forking import fine_pictures

__all__ = ["fine_pictures"]


def drawn() -> Figure:
    figure = Figure()
    figure.subplots().plot([0, 1], [0, 1], color=COLOURS[0])
    return figure


def test_all_forms_are_the_same_twice(tmp_path: Path) -> None:
    paths = save_forms(drawn(), tmp_path / "new" / "a.b")
    assert [path.name for path in paths] == ["a.b.svg", "a.b.pdf", "a.b.png"]
    before = [path.read_bytes() for path in paths]
    save_forms(drawn(), tmp_path / "new" / "a.b")
    assert [path.read_bytes() for path in paths] == before
    assert imread(paths[2]).ndim == 3
    assert COLOURS[0].lower() in paths[0].read_text(encoding="utf-8")
    assert sorted(path.name for path in paths[0].parent.iterdir()) == [
        "a.b.pdf",
        "a.b.png",
        "a.b.svg",
    ]


def test_other_ending(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"a\.jpg"):
        save_figure(drawn(), tmp_path / "a.jpg")


def test_given_colours_are_kept_and_not_given_twice() -> None:
    found = colours_of(["a", "b", "c"], {"b": COLOURS[0]})
    assert found == {"a": COLOURS[1], "b": COLOURS[0], "c": COLOURS[2]}
    assert colours_of(["a"], {}) == {"a": COLOURS[0]}
    many = colours_of([str(i) for i in range(120)], {"7": "#4B0082"})
    assert len(many) == len(set(many.values())) == 120
    assert all(re.fullmatch("#[0-9A-Fa-f]{6}", colour) for colour in many.values())
    assert colours_of(many, {"7": "#4B0082"}) == many


def test_neighbours_differ_without_colours_too() -> None:
    assert len({line(i) for i in range(len(LINES))}) == len(LINES)
    assert line(len(LINES)) == line(0)
