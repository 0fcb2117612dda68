"""The files that a prediction writes: label map in several formats, probabilities, a picture."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image

from autoseg.common.arrays import Floats, LabelMap, Triple, count_values
from autoseg.common.errors import AutosegError, DataError, install_hint
from autoseg.common.figures import rendered
from autoseg.common.files import cannot_write, replacing
from autoseg.common.pages import picture_uri, write_page
from autoseg.image.dicom_series import Source
from autoseg.image.formats import PREVIEW, ending_of
from autoseg.image.geometry import SWAPS, Geometry, Turn, orientation_of
from autoseg.image.image import Image as Scan
from autoseg.image.label_writer import to_simpleitk
from autoseg.image.view import PREDICTION, Exhibit, make_view
from autoseg.plan.labels import class_of, values_of
from autoseg.plan.plan import Plan
from autoseg.prediction.native_grid import PLANES_AT_ONCE, Save
from autoseg.prediction.studies import TEXT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_FORMAT, DICOM_SEG, PICTURE = "nii.gz", "dicom-seg", "picture"
ENDINGS = {DEFAULT_FORMAT: ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", DICOM_SEG: ".dcm"}
FORMATS = tuple(ENDINGS)  # to choose from
ENDINGS |= {PICTURE: ".png"}  # of pictures, without asking
PROBABILITIES = ".probabilities.b2nd"
CAPTURE = ".preview.dcm"
REPORT = "report.html"
PAGE_PIXELS, PAGE_QUALITY = 720, 75  # of a picture in the report


def ending(format: str) -> str:
    """The file name ending of a format.

    Raises:
        AutosegError: the format is unknown.
    """
    if format not in ENDINGS:
        raise AutosegError(f"unknown output format {format!r}; choose {', '.join(FORMATS)}")
    return ENDINGS[format]


def output_path(folder: Path, case: str, format: str = DEFAULT_FORMAT) -> Path:
    """The file of a case's label map."""
    return folder / f"{case}{ending(format)}"


def check_format(format: str, inputs: Mapping[str, tuple[Source, ...]]) -> None:
    """Check that all cases can be written in a format, before the first one is predicted.

    Raises:
        AutosegError: the format is unknown, or it needs DICOM input or a library that is missing.
    """
    ending(format)
    if format != DICOM_SEG:
        return
    if find_spec("highdicom") is None:
        raise AutosegError(f"--format dicom-seg needs highdicom; run: {install_hint('dicom')}")
    firsts = [file for file, *_ in inputs.values() if isinstance(file, Path)]
    others = [file for file in firsts if not file.is_dir() and ending_of(file)]
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise AutosegError(TEXT("no series for SEG", file=others[0], more=more))


# Probabilities: one Blosc2 array (class, x, y, z) of float16 on the scan's own grid. The classes
# are in the order of the plan's labels, without the background if they are regions. Slicing reads
# no more than is needed:
#
#     probabilities = blosc2.open("case.probabilities.b2nd", mode="r")
#     tumour = probabilities[2]  # a NumPy array (x, y, z)
#     names = probabilities.vlmeta["classes"]


@contextmanager
def probability_file(
    path: Path, names: Sequence[str], size: Triple, view: Turn = SWAPS[0], temperature: float = 1.0
) -> Iterator[Save]:
    """A file of an array (class, x, y, z), by what writes some planes of a class within the block.

    The file appears when the block succeeds.

    Args:
        path: the file.
        names: of the classes.
        size: voxels along x, y, z.
        view: from this grid to that of the planes (x) that are written, `PLANES_AT_ONCE` at a time.
        temperature: of the probabilities, which is recorded unless it is 1.

    Raises:
        AutosegError: it cannot be written, also within the block.
    """
    import blosc2  # slow to import, and rarely needed

    chunk, axis = list(size), view.axes[0]
    chunk[axis] = min(PLANES_AT_ONCE, size[axis])  # so that each chunk is compressed once
    with replacing(path) as temporary:
        with errors_name(path):
            small: Any = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1}
            how: Any = {"mode": "w", "chunks": (1, *chunk), "cparams": small}
            array = blosc2.zeros((len(names), *size), np.float16, urlpath=str(temporary), **how)
            array.vlmeta["classes"] = list(names)
            if temperature != 1:
                array.vlmeta["temperature"] = temperature

        def write(index: int, rows: slice, probabilities: Floats) -> None:
            where: list[Any] = [index, slice(None), slice(None), slice(None)]
            if view.flips[0]:
                rows = slice(size[axis] - rows.stop, size[axis] - rows.start)
            where[1 + axis] = rows
            turned = view.inverse().array(probabilities.astype(np.float16))
            with errors_name(path):
                array[tuple(where)] = np.ascontiguousarray(turned)

        yield write


@contextmanager
def errors_name(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Make write errors (also those of Blosc2 and SimpleITK) name the final file, in one line."""
    try:
        yield
    except DataError:
        raise
    except AutosegError as error:
        raise AutosegError(str(error).replace((temporary or path).name, path.name)) from error
    except RuntimeError as error:  # such as if the disk is full
        raise cannot_write(path, RuntimeError(str(error).strip().splitlines()[-1])) from error


def write_uncertainty(path: Path, values: NDArray[np.float16], geometry: Geometry) -> None:
    """Write float16 values (x, y, z) on a scan's grid, as float32: NIfTI has no type of 16 bits."""
    with replacing(path) as temporary, errors_name(path):
        sitk.WriteImage(to_simpleitk(values.astype(np.float32), geometry), str(temporary), True)


def volumes(label: LabelMap, geometry: Geometry, plan: Plan) -> dict[str, Any]:
    """Volume of each class in ml, and the shares that the plan defines."""
    counts = count_values(label, max(values_of(plan.labels)) + 1)
    voxel_ml = prod(geometry.spacing_mm) / 1000
    classes = dict(list(plan.labels.items())[1:])
    volumes = {n: round(float(counts[[*of]].sum() * voxel_ml), 6) for n, of in classes.items()}
    shares: dict[str | None, float | None] = {}
    for share in plan.shares:
        part = _voxels(counts, {share.label}, plan)
        whole = part + _voxels(counts, set(share.container), plan)
        shares[class_of(share.label, plan.labels)] = round(part / whole, 6) if whole else None
    return {"volume_ml": volumes} | ({"share": shares} if plan.shares else {})


def _voxels(counts: NDArray[np.int64], labels: set[int], plan: Plan) -> int:
    """Voxels of the classes of these labels; a label map holds one value for a whole class."""
    if plan.classes.are_regions:  # it holds the values of regions, in which classes overlap
        return int(counts[list(labels)].sum())
    classes = [covered for covered in plan.labels.values() if labels & set(covered)]
    return sum(int(counts[list(covered)].sum()) for covered in classes)


def draw_preview(image: NDArray[Any], label: LabelMap, geometry: Geometry, plan: Plan) -> "Figure":
    """Draw three planes of a scan with the contours of the classes.

    Args:
        image: one channel (x, y, z).
        label: label values (x, y, z).
        geometry: the grid of both.
        plan: defines the classes and their colours, which are those of the DICOM SEG.
    """
    from autoseg.image.picture import draw_view  # few predictions draw, and matplotlib loads slowly

    turn = Turn.between(orientation_of(geometry), "LPS")
    classes = dict(list(plan.labels.items())[1:])
    colours = plan.evaluation.colours_of(classes)
    exhibit = Exhibit("", Path(), None, None, classes, colours=colours, channel=plan.channels[0])
    maps = {PREDICTION: turn.array(label)}
    view = make_view(exhibit, turn.array(image), maps, turn.triple(geometry.spacing_mm))
    return draw_view(view, kinds=("contours",))


@dataclass(frozen=True)
class Prediction:
    """A scan with its label map (x, y, z), which a notebook shows in three planes."""

    image: Scan
    label: LabelMap
    plan: Plan

    def _repr_html_(self) -> str:
        """Three planes through the largest class, as those of `--preview`."""
        picture = draw_preview(self.image.array[0], self.label, self.image.geometry, self.plan)
        uri = picture_uri("png", rendered(picture, "png"))
        return f'<img alt="three planes" src="{uri}">'


def write_report(folder: Path, record: Mapping[str, Any], missing: Sequence[Sequence[str]]) -> None:
    """Write `report.html`, a page on a folder of predictions, the most suspicious first.

    Args:
        folder: of the predictions and their previews.
        record: the content of its `predictions.json`.
        missing: outcome, name and reason of each scan that is not predicted.
    """
    cases = sorted(record["cases"].items(), key=lambda item: _trust(item[1]))
    known = [of["assessment"] for _, of in cases if of.get("quality")]
    write_page(
        folder / REPORT,
        Path(__file__).parent / "templates" / "predictions.html.j2",
        title=f"Predictions of {record['task']}",
        cases=[(name, of, _small(folder / f"{name}{PREVIEW}")) for name, of in cases],
        missing=missing,
        counts=Counter(of.get("quality") for _, of in cases),
        facts={key: of for key, of in record.items() if key not in ("cases", "runs", "outdated")},
        classes=list(dict.fromkeys(name for _, of in cases for name in of["volume_ml"])),
        **{key: known[0][key] if known else None for key in ("level", "usual_dice")},
    )


def _trust(case: Mapping[str, Any]) -> float:
    return -float(case.get("assessment", {}).get("suspicion", 0)) - bool(case.get("differs"))


def _small(path: Path) -> str:
    """A picture as a small data URI; empty if there is none."""
    if not path.is_file():
        return ""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((PAGE_PIXELS, PAGE_PIXELS))
    small.save(buffer := BytesIO(), format="WEBP", quality=PAGE_QUALITY)
    return picture_uri("webp", buffer.getvalue())
