"""What all figures share: colours, line styles and hatches that stay apart in print, and files.

A class is told by its colour and, on grey paper, by its line style or hatch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import AutosegError
from autoseg.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Line = Literal["solid", "dashed", "dotted", "dashdot"]

# Okabe and Ito's palette, which colour-blind people can tell apart too, without black.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
# Of it, what is dark enough for thin lines on white paper.
DARK_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
LINES: tuple[Line, ...] = ("solid", "dashed", "dotted", "dashdot")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "+++")
DOTS_PER_INCH = 150
FORMS = (".svg", ".png")  # for print, and for slides

Colours = Mapping[str, str]  # class -> #RRGGBB


def line(index: int) -> Line:
    """The line style of the class with this place in the list."""
    return LINES[index % len(LINES)]


def hatch(index: int) -> str:
    """Its hatch."""
    return HATCHES[index % len(HATCHES)]


def colours_of(names: Iterable[str], given: Colours) -> dict[str, str]:
    """The colour of every class: the given one, else the next of the palette that is not taken."""
    free = [each for each in COLOURS if each not in given.values()] or list(COLOURS)
    found: dict[str, str] = {}
    for name in names:
        others = len(found.keys() - given.keys())
        found[name] = given.get(name, free[others % len(free)])
    return found


def save_figure(figure: Figure, out: Path) -> None:
    """Write a figure as PNG or SVG, whole or not at all; the same figure gives the same bytes."""
    from matplotlib import rc_context

    form = out.suffix.lower().removeprefix(".")
    if form not in ("png", "svg"):
        raise AutosegError(f"{out}: pictures are written as .png or .svg, not as {out.suffix!r}")
    metadata: dict[str, Any] = {"Date": None} if form == "svg" else {"Software": None}
    with replacing(out) as temporary, rc_context({"svg.hashsalt": "autoseg"}):
        figure.savefig(temporary, format=form, dpi=DOTS_PER_INCH, metadata=metadata)


def save_forms(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as SVG and as PNG; returns both paths."""
    paths = [stem.with_name(stem.name + form) for form in FORMS]
    for path in paths:
        save_figure(figure, path)
    return paths


def jitter(count: int, width: float) -> NDArray[np.floating[Any]]:
    """Places around 0 for the dots of a box or bar: side by side, so that few are hidden."""
    return (np.arange(count) * 0.618 % 1 - 0.5) * width


def tidy(axes: Axes) -> None:
    """Only the lines that help to read values."""
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def take_literally(texts: Sequence[Text]) -> None:
    """Names are no formulas: a dollar sign in them means nothing."""
    for text in texts:
        text.set_parse_math(False)
