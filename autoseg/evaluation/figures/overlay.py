"""Scored cases: figures of image, contours and errors, and volumes for the viewer of a page."""

import gzip
import textwrap
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from autoseg.common.errors import DataError
from autoseg.common.figures import DOTS_PER_INCH, save_figure
from autoseg.common.pages import PIXELS_PER_INCH, Chart, picture_uri
from autoseg.evaluation.labels import ScoredClasses
from autoseg.evaluation.scores import CaseScores, Summary
from autoseg.evaluation.tables import dice_text
from autoseg.image import picture
from autoseg.image.formats import ending_of, stem_of
from autoseg.image.view import Exhibit, Plane, View, main_axis, read_view

Exhibits = Sequence[Exhibit]  # cases that can be drawn
TITLE_INCHES, BELOW_TITLE = 0.24, 0.05  # of a line of the title that `draw_view` draws
MOST_BYTES = 6_000_000  # of a case in the viewer


def overlay(exhibit: Exhibit, out: Path) -> None:
    """Draw image, contours and errors of one case in three planes (see `draw_view`).

    Args:
        exhibit: the case.
        out: a `.svg`, `.pdf` or `.png` file.

    Raises:
        DataError: a file cannot be read, or the grids differ.
        AutosegError: `out` has another ending.
    """
    save_figure(picture.draw_view(read_view(exhibit), exhibit.title), out)


def draw_cases(exhibits: Exhibits, title: str = "") -> Figure:
    """One row for each case: image, contours and errors in the plane of the slices."""
    rows, heads = [], []
    for exhibit in exhibits:
        view = read_view(exhibit)
        axis = main_axis(view)
        k = view.fullest()[axis]
        one = view.crop(tuple(slice(k, k + 1) if a == axis else slice(None) for a in range(3)))
        rows.append([picture.Panel(Plane(one, axis, 0), kind) for kind in picture.kinds_of(view)])
        name = f"slice {k + 1} of {view.image.shape[axis]}"
        heads.append(f"{exhibit.title or exhibit.case} ({name})")
    return picture.draw_rows(rows, heads, title)


def volume_of(exhibit: Exhibit, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """A case for the viewer of a page: its layers as bytes, compressed, and what they mean.

    The image has 256 steps over its values. Every second voxel (third, ...) along each axis is
    taken if the layers would be larger than `most_bytes`, which the note says.
    """
    view = read_view(exhibit)
    low, high = np.percentile(view.image, (0.1, 99.9))
    low, high = min(float(low), view.window[0]), max(float(high), view.window[1])
    tables = {which: _numbers(view, which) for which in view.maps}
    at, step, layers = view.fullest(), 0, {"image": " " * (most_bytes + 1)}
    while sum(map(len, layers.values())) > most_bytes:
        step += 1
        part = (slice(None, None, step),) * 3
        grey = np.clip((view.image[part].astype(np.float32) - low) / (high - low), 0, 1)
        small = {"image": np.rint(255 * grey)}
        small |= {which: tables[which][of[part]] for which, of in view.maps.items()}
        if len(view.maps) > 1:
            planes = [Plane(view, 2, k).errors() for k in range(0, view.image.shape[2], step)]
            codes = [sum(i * mask for i, mask in enumerate(of.values(), 1)) for of in planes]
            small["difference"] = np.stack(codes).T[part[:2]]
        layers = {name: _packed(array) for name, array in small.items()}
    return {
        "case": exhibit.case,
        "title": exhibit.title or exhibit.case,
        "size": small["image"].shape,
        "spacing": [mm * step for mm in view.spacing_mm],
        "at": [k // step for k in at],
        "low": low,
        "high": high,
        "window": [float(f"{value:.4g}") for value in view.window],
        "classes": list(view.colours.items()),
        "errors": list(picture.ERROR_COLOURS.items()),
        "layers": layers,
        "note": f"Only every {step}. voxel along each axis is in the page." if step > 1 else "",
    }


def _numbers(view: View, which: str) -> NDArray[np.uint8]:
    """Value in a label map -> number of its class, from 1; 0 for other values."""
    table = np.zeros(1 + int(view.maps[which].max(initial=0)), np.uint8)
    numbers = {name: 1 + i for i, name in enumerate(view.exhibit.labels)}
    # A region is within larger ones: the smallest is seen.
    for name, values in sorted(view.classes_of(which).items(), key=lambda of: -len(of[1])):
        table[[value for value in values if value < len(table)]] = numbers[name]
    return table


def _packed(array: NDArray[Any]) -> str:
    """Bytes (x, y, z), x fastest, compressed as text."""
    content = array.T.astype(np.uint8).tobytes()
    return b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")


def chart_of_file(path: Path, title: str, alt: str, pixels: int = 0) -> Chart:
    """A picture that `save_figure` wrote, for a page; its width in `pixels`, if they are given.

    Else its title is cut off, which is above it in the page.
    """
    lines = len(textwrap.wrap(title, picture.TITLE_CHARACTERS))
    content, above = BytesIO(), lines * TITLE_INCHES + BELOW_TITLE
    with Image.open(path) as drawn:
        width = round(drawn.width / DOTS_PER_INCH * PIXELS_PER_INCH)
        if pixels:
            drawn.thumbnail((pixels, 10 * pixels))
            width, above = drawn.width, 0
        shown = drawn.crop((0, round(above * DOTS_PER_INCH), *drawn.size))
        shown.convert("RGB").save(content, "WEBP")
    return Chart(title, alt, picture_uri("webp", content.getvalue()), width)


def draw_examples(summary: Summary, images: Path, labels: ScoredClasses, out: Path) -> list[Path]:
    """Draw the worst, the median and the best case as `overlay_CASE.png` into `out`.

    Args:
        summary: the scores, which name the label maps.
        images: folder of the scans.
        labels: the classes.
        out: output folder.

    Returns:
        The paths of the figures, worst case first.

    Raises:
        DataError: a scan is not in `images`, or not on the grid of its label map.
    """
    chosen = worst_to_best(summary)
    paths = [out / f"overlay_{case.case}.png" for case in chosen]
    for case, path in zip(chosen, paths, strict=True):
        overlay(exhibit(case, find_image(images, case.case), labels), path)
    return paths


def exhibit(case: CaseScores, image: Path, labels: ScoredClasses) -> Exhibit:
    """The files of a scored case and its scan."""
    maps = Path(case.reference_file), Path(case.prediction_file)
    made = Exhibit(case.case, image, *maps, labels.values, dice_text(case), labels.in_prediction)
    return replace(made, colours=labels.colours, ignore=labels.ignore, channel=labels.channel)


def worst_to_best(summary: Summary, count: int = 3) -> list[CaseScores]:
    """Cases evenly spaced in the order of their mean Dice: the worst, the median and the best.

    Cases whose Dice is undefined are left out.

    Args:
        summary: the scores.
        count: of cases; fewer if there are fewer.
    """
    scored = [(dice, case) for case in summary.cases if (dice := case.mean()) is not None]
    scored.sort(key=lambda pair: pair[0])
    indices = {i * (len(scored) - 1) // max(1, count - 1) for i in range(count) if scored}
    return [scored[index][1] for index in sorted(indices)]


def evenly(exhibits: Exhibits, summary: Summary, count: int = 3) -> list[Exhibit]:
    """Those of the cases that can be drawn, evenly from the worst to the best."""
    by_case = {each.case: each for each in exhibits}
    drawable = Summary(tuple(case for case in summary.cases if case.case in by_case))
    return [by_case[case.case] for case in worst_to_best(drawable, count)]


def find_image(images: Path, case: str) -> Path:
    """The scan of a case, named with or without the channel number `_0000`.

    Raises:
        DataError: there is no such file.
    """
    if found := scans_in(images, [case]):
        return found[case]
    raise DataError(f"{images}: contains no scan of {case} ({case}.nii.gz or {case}_0000.nii.gz)")


def scans_in(images: Path, cases: Iterable[str]) -> dict[str, Path]:
    """Case -> its scan, named with or without the channel number `_0000`, if there is one."""
    paths = {stem_of(path): path for path in sorted(images.glob("*"))[::-1] if ending_of(path)}
    return {case: p for case in cases if (p := paths.get(case) or paths.get(f"{case}_0000"))}
