"""What all figures share: colours, line styles and hatches that stay apart in print, and files.

A class is told by its colour and, on grey paper, by its line style or hatch.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.common.errors import AutosegError
from autoseg.common.files import replacing

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


# Noisy curves, smoothed by Gaussian-process regression as in Müller et al. 2021, Fig. 5.

FEWEST_POINTS = 5  # below it nothing can be told from noise
MOST_POINTS = 100  # a fit takes the cube of this number
DRAWN_POINTS = 200
BAND = 1.959964  # standard deviations on either side hold 95 % of a normal distribution

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A smoothed curve: four arrays of the same length.

    Attributes:
        x: places, rising.
        mean: the curve's expected value.
        low: lower limit of the 95 % confidence band of the curve (not of single points).
        high: its upper limit.
    """

    x: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers


def smooth(x: Sequence[float], y: Sequence[float | None]) -> Curve | None:
    """Smooth the points (x, y); several may share a place, such as the folds of one epoch.

    Points without a finite y are left out. More than `MOST_POINTS` are averaged in bins, so that
    the fit stays below a tenth of a second. None below `FEWEST_POINTS`, or at a single place.
    """
    places, values = _known(x, y)
    if len(values) < FEWEST_POINTS or places[0] == places[-1]:
        return None
    at = np.linspace(places[0], places[-1], DRAWN_POINTS)
    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        flat = np.full(DRAWN_POINTS, values.mean())
        return Curve(at, flat, flat, flat)
    mean, deviation = _regress(_warp(_binned(places), at), _binned(values), _warp(at, at))
    return Curve(at, mean, mean - BAND * deviation, mean + BAND * deviation)


def _known(x: Sequence[float], y: Sequence[float | None]) -> tuple[Numbers, Numbers]:
    """The finite points in order of their places."""
    places = np.asarray(x, float)
    values = np.array([np.nan if value is None else value for value in y], float)
    there = np.isfinite(values)
    order = np.argsort(places[there], kind="stable")
    return places[there][order], values[there][order]


def _binned(values: Numbers) -> Numbers:
    """Means of neighbours, at most `MOST_POINTS`."""
    if len(values) <= MOST_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, MOST_POINTS)])


def _warp(x: Numbers, span: Numbers) -> Numbers:
    """Places from 0 to 1 that lie denser towards the end.

    Learning curves change fastest at their beginning: one length for all of them fits only then.
    """
    share = (x - span[0]) / (span[-1] - span[0])
    warped: Numbers = (np.sqrt(1 + 24 * share) - 1) / 4
    return warped


def _regress(x: Numbers, y: Numbers, at: Numbers) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation of the curve beneath the noise."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
    from threadpoolctl import threadpool_limits

    signal = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(0.3, (0.05, 2.0), nu=2.5)
    kernel = signal + WhiteKernel(0.05, (1e-5, 1.0))
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    # Several threads on matrices this small take longer than one.
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        # A curve with hardly any noise, or nothing else, ends at a bound: that is no fault.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(x[:, None], y)
        mean, deviation = process.predict(at[:, None], return_std=True)
    noise = process.kernel_.k2.noise_level * np.var(y)
    return mean, np.sqrt(np.maximum(deviation**2 - noise, 0))


# Figures within the report's page: as SVG on no background, or as PNG where that is too large.

LARGEST_SVG = 150_000  # bytes; thousands of points make more
PIXELS_PER_INCH = 96  # of a web page


@dataclass(frozen=True)
class Chart:
    """A figure in the page.

    Attributes:
        title: stands above.
        alt: what is to see, for those who cannot.
        data: the picture as a data URI.
        width: in the page's pixels.
        note: a sentence below.
    """

    title: str
    alt: str
    data: str
    width: int
    note: str = ""


def chart(figure: Figure, title: str, alt: str, note: str = "") -> Chart:
    """Put a figure into the page; the same figure gives the same bytes."""
    content, kind = _drawn(figure, "svg", {"Date": None}), "svg+xml"
    if len(content) > LARGEST_SVG:
        content, kind = _drawn(figure, "png", {"Software": None}), "png"
    width = round(figure.get_figwidth() * PIXELS_PER_INCH)
    return Chart(title, alt, picture_uri(kind, content), width, note)


def picture_uri(kind: str, content: bytes) -> str:
    """A picture (`png`, `webp`, `svg+xml`) as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _drawn(figure: Figure, form: str, metadata: dict[str, Any]) -> bytes:
    from matplotlib import rc_context

    held = io.BytesIO()
    with rc_context({"svg.hashsalt": "autoseg"}):
        figure.savefig(held, format=form, dpi=DOTS_PER_INCH, metadata=metadata, transparent=True)
    return held.getvalue()
