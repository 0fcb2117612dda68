"""What all figures share: colours, line styles, hatches, smoothed curves, and files.

Classes differ in colour and, for black-and-white print, in line style or place.
"""

import colorsys
import io
import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from autoseg.common.arrays import Array
from autoseg.common.errors import AutosegError
from autoseg.common.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text


Line = Literal["solid", "dashed", "dotted", "dashdot"]

# The colour-blind safe palette of Okabe and Ito, without black.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
# Those that are dark enough for thin lines on white.
DARK_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
LINES: tuple[Line, ...] = ("solid", "dashed", "dotted", "dashdot")
DOTS_PER_INCH = 150
FEWEST_POINTS = 8  # for smoothing; a curve through fewer invents bumps
MOST_POINTS = 100  # the time of a fit grows with the cube
DRAWN_POINTS = 200
BAND = 1.959964  # standard deviations on either side of a 95 % interval
WINDOW_PERCENT = (1, 99)
WINDOW_VOXELS = 1_000_000  # a sample of this size is enough to find the window
BELOW, RIGHT = 0.5, 0.5  # inches for an axis with its name, and at the right edge
FORMS = (".svg", ".pdf", ".png")  # for the web, print and slides

Colours = Mapping[str, str]  # class -> #RRGGBB
Inches = tuple[float, float]  # width and height
Numbers = NDArray[np.float64]


def line(index: int) -> Line:
    """The line style of the class with this index."""
    return LINES[index % len(LINES)]


def colours_of(names: Iterable[str], given: Colours) -> dict[str, str]:
    """The colour of each class: the given one, or the next free one of the palette or of more."""
    found: dict[str, str] = {}
    more = (_colour(index) for index in itertools.count())
    free = (each for each in itertools.chain(COLOURS, more) if each not in given.values())
    for name in names:
        if name not in found:
            found[name] = given.get(name) or next(free)
    return found


def _colour(index: int) -> str:
    """A further colour: hues a golden angle apart, in three shades."""
    red, green, blue = colorsys.hls_to_rgb(index * 0.618034 % 1, (0.5, 0.7, 0.35)[index % 3], 0.75)
    return "#" + "".join(f"{round(255 * part):02X}" for part in (red, green, blue))


def save_figure(figure: "Figure", out: Path) -> None:
    """Write a figure as SVG, PDF or PNG, atomically; the same figure gives the same bytes."""
    if out.suffix.lower() not in FORMS:
        raise AutosegError(f"{out}: figures are written as {', '.join(FORMS)}, not {out.suffix!r}")
    content = rendered(figure, out.suffix.lower().removeprefix("."))
    with replacing(out) as temporary:
        temporary.write_bytes(content)


def rendered(figure: "Figure", form: str, transparent: bool = False) -> bytes:
    """A figure as the content of a file: `svg`, `pdf`, `png` or `webp`."""
    from matplotlib import rc_context

    metadata = {"pdf": {"CreationDate": None}, "png": {"Software": None}, "svg": {"Date": None}}
    options: dict[str, Any] = {"metadata": metadata[form]} if form in metadata else {}
    if form == "png":  # a little larger, and three times as fast as the default
        options["pil_kwargs"] = {"compress_level": 3}
    buffer = io.BytesIO()
    # Type 42 fonts, which publishers ask for, are embedded in a PDF as text.
    with rc_context({"svg.hashsalt": "autoseg", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=form, dpi=DOTS_PER_INCH, transparent=transparent, **options)
    return buffer.getvalue()


def pixels_of(figure: "Figure") -> NDArray[np.uint8]:
    """A figure as (rows, columns, RGB)."""
    return np.asarray(Image.open(io.BytesIO(rendered(figure, "png"))).convert("RGB"))


def save_forms(figure: "Figure", stem: Path) -> list[Path]:
    """Write a figure as SVG, PDF and PNG, and return the paths."""
    paths = [stem.with_name(stem.name + form) for form in FORMS]
    for path in paths:
        save_figure(figure, path)
    return paths


def new_grid(
    count: int, most_columns: int, size: Inches, left: float, gap: float = 0.3, above: float = 0.3
) -> "tuple[Figure, list[Axes]]":
    """A figure with panels of a fixed size in inches, line by line.

    Args:
        count: the number of panels.
        most_columns: of a line.
        size: of a panel.
        left: room at the left edge.
        gap: room between columns.
        above: room above a panel; below is room for an axis with its name.
    """
    from matplotlib.figure import Figure

    columns = min(most_columns, count)
    rows = -(-count // columns)
    width = left + columns * (size[0] + gap) - gap + RIGHT
    height = rows * (size[1] + above + BELOW)
    figure = Figure(figsize=(width, height))
    places = {"left": left / width, "right": 1 - RIGHT / width, "bottom": BELOW / height}
    places |= {"top": 1 - above / height, "wspace": gap / size[0]}
    places["hspace"] = (above + BELOW) / size[1]
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw=places).ravel().tolist()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid[:count]


def jitter(count: int, width: float) -> NDArray[np.floating[Any]]:
    """Offsets around 0 that spread the dots of a box or bar, so that few are hidden."""
    return (np.arange(count) * 0.618 % 1 - 0.5) * width


def tidy(axes: "Axes", values: Literal["x", "y"] = "y") -> None:
    """Keep only the lines that help to read the values along one axis."""
    axes.grid(axis=values, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def take_literally(texts: "Sequence[Text]") -> None:
    """Draw dollar signs in names as they are, not as formulas."""
    for text in texts:
        text.set_parse_math(False)


# Slices of scans.


def window_of(image: Array) -> tuple[float, float]:
    """The values to show as black and white: percentiles of the image, or of a sample of it."""
    values = image.ravel(order="K")
    low, high = np.percentile(values[:: max(1, values.size // WINDOW_VOXELS)], WINDOW_PERCENT)
    return float(low), float(max(high, low + 1e-6))


# Smoothing by Gaussian process regression, as in Müller et al. 2021, Fig. 5.


class Curve(NamedTuple):
    """A smoothed curve: four arrays of the same length.

    Attributes:
        x: ascending positions.
        mean: expected value of the curve.
        low: lower limit of the 95 % confidence band of the curve (not of single points).
        high: upper limit of the band.
    """

    x: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers


def smooth(x: Sequence[float], y: Sequence[float | None]) -> Curve | None:
    """Smooth the points (x, y); several may have the same x, such as the folds of one epoch.

    Points without a finite y are ignored. More than `MOST_POINTS` are averaged in bins, so that
    the fit takes less than a tenth of a second.

    Returns:
        the curve; None for fewer than `FEWEST_POINTS` different x.
    """
    return _smooth(tuple(x), tuple(y))


@lru_cache(maxsize=64)  # several figures show the same curve
def _smooth(x: Sequence[float], y: Sequence[float | None]) -> Curve | None:
    positions = np.asarray(x, float)
    known = np.array([np.nan if value is None else value for value in y], float)
    order = np.argsort(positions, kind="stable")  # the finite points, ordered by x
    order = order[np.isfinite(known[order])]
    known_x, values = positions[order], known[order]
    if len(np.unique(known_x)) < FEWEST_POINTS:
        return None
    at = np.linspace(known_x[0], known_x[-1], DRAWN_POINTS)
    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        flat = np.full(DRAWN_POINTS, values.mean())
        return Curve(at, flat, flat, flat)
    low, high = np.quantile(values, (0.1, 0.9))
    if high > low:  # one value far away would make the curve swing beside it
        values = np.clip(values, low - 5 * (high - low), high + 5 * (high - low))
    mean, deviation = _regress(_warp(_binned(known_x), at), _binned(values), _warp(at, at))
    return Curve(at, mean, mean - BAND * deviation, mean + BAND * deviation)


def _binned(values: Numbers) -> Numbers:
    """At most `MOST_POINTS` means of neighbouring values."""
    if len(values) <= MOST_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, MOST_POINTS)])


def _warp(x: Numbers, span: Numbers) -> Numbers:
    """Map x to 0..1, stretched at the beginning.

    Learning curves change fastest there, and the kernel has one length scale for the whole curve.
    """
    share = (x - span[0]) / (span[-1] - span[0])
    return np.asarray((np.sqrt(1 + 24 * share) - 1) / 4)


def _regress(x: Numbers, y: Numbers, at: Numbers) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation of the curve without its noise."""
    # Imported here: worker processes that draw no curves need no scikit-learn.
    from sklearn import exceptions, gaussian_process

    kernels = gaussian_process.kernels
    signal = kernels.ConstantKernel(1.0, (1e-2, 1e2)) * kernels.Matern(0.3, (0.05, 2.0), nu=2.5)
    kernel = signal + kernels.WhiteKernel(0.05, (1e-5, 1.0))
    process = gaussian_process.GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    # Matrices this small are faster with one thread.
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        # A curve with hardly any noise, or nothing but noise, ends at a bound; that is fine.
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        process.fit(x[:, None], y)
        mean, deviation = process.predict(at[:, None], return_std=True)
    noise = process.kernel_.k2.noise_level * np.var(y)
    return mean, np.sqrt(np.maximum(deviation**2 - noise, 0))
