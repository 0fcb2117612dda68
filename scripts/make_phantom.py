"""Write a phantom of the COVID-19 CT set: real geometry, shares and intensities, synthetic lungs.

Each of the 20 cases of Ma et al. 2020 (tests/data/covid20_headers.csv) becomes a chest with a body,
a spine, two lungs with vessels, and ground-glass and consolidated lesions of the listed shares. The
heart and the aorta on the left and the liver on the right tell the two lungs apart, also in a patch
and in a mirrored one.
Ten cases are in Hounsfield units, ten are windowed to [-1250, 250] and scaled to 0..255, as in the
published set. The same seed gives the same files.

    python scripts/make_phantom.py WORKSPACE/raw/Task001_COVID --scale 0.25
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from covid_set import declaration
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from autoseg.common.files import replacing, write_json
from autoseg.preprocessing.resample import apply_operators

HEADERS = Path(__file__).resolve().parent.parent / "tests" / "data" / "covid20_headers.csv"
INFECTION = 3
LAS = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)  # x to the left, y to the front, z up
AIR, FAT, MUSCLE, BONE, LUNG, VESSEL = -1000.0, -100.0, 40.0, 500.0, -850.0, 30.0
HEART, LIVER, AORTA = 120.0, 90.0, 180.0  # with contrast agent
GROUND_GLASS, CONSOLIDATION = -550.0, 20.0
WINDOW_HU = (-1250.0, 250.0)
FINEST = 96  # voxels along an axis of the grid on which anatomy is decided
Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Header:
    """One line of the CSV, scaled: the extent in mm and the shares stay."""

    name: str
    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    is_hu: bool
    lung_share: float  # of all voxels, infection included
    infection_share: float

    @staticmethod
    def of(row: dict[str, str], scale: float) -> Header:
        """Read a line; `scale` shrinks the number of voxels along each axis."""
        size = [int(row[f"size_{axis}"]) for axis in "xyz"]
        spacing = [float(row[f"spacing_{axis}_mm"]) for axis in "xyz"]
        x, y, z = (max(8, round(n * scale)) for n in size)
        dx, dy, dz = (s * n / m for s, n, m in zip(spacing, size, (x, y, z), strict=True))
        voxels = np.prod(size)
        lungs, infection = int(row["lung_voxels"]), int(row["infection_voxels"])
        return Header(
            name=row["case"],
            size=(x, y, z),
            spacing_mm=(dx, dy, dz),
            is_hu=row["intensity"] == "HU",
            lung_share=float((lungs + infection) / voxels),
            infection_share=float(infection / voxels),
        )


@dataclass(frozen=True)
class Anatomy:
    """Smooth fields on a coarse grid; each thing is where its field is positive."""

    body: Array
    spine: Array
    left: Array
    right: Array
    lesion: Array
    vessel: Array
    heart: Array
    liver: Array
    aorta: Array


def draw_anatomy(header: Header, rng: np.random.Generator) -> Anatomy:
    """Place body, lungs and lesions so that the shares are those of the header."""
    shape = [min(n, FINEST) for n in header.size]
    axes = [(np.arange(n) + 0.5) / n * 2 - 1 for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    wobble = 0.06 * smooth_noise(shape, 8, rng)
    body = 1 - np.hypot(x / 0.9, y / 0.68) + 0.3 * wobble
    spine = 1 - np.hypot(x / 0.08, (y + 0.42) / 0.1)
    left = ellipsoid(x - 0.37, y, z, (0.27, 0.42, 0.85)) + wobble
    right = ellipsoid(x + 0.37, y, z, (0.29, 0.44, 0.88)) + wobble
    heart = ellipsoid(x - 0.1, y - 0.12, z + 0.2, (0.24, 0.25, 0.38))
    liver = ellipsoid(x + 0.3, y, z + 1, (0.5, 0.6, 0.75))
    arch = 0.07 - np.hypot(np.hypot(x - 0.06, (y + 0.1) / 1.1) - 0.12, (z - 0.35) / 1.5)
    descending = np.minimum(0.07 - np.hypot(x - 0.13, y + 0.24), 0.4 - z)
    aorta = np.maximum(arch, descending)
    others = np.maximum(np.maximum(heart, liver), aorta)
    left, right = (np.where(others > 0, -1, lung) for lung in (left, right))
    lungs = np.maximum(left, right)
    grown = np.quantile(lungs, 1 - header.lung_share)
    left, right, lungs = left - grown, right - grown, lungs - grown
    # Lesions are more frequent at the back and the border of the lung.
    disease = smooth_noise(shape, 12, rng) - 0.5 * y - 0.3 * lungs
    disease = np.where(lungs > 0, disease, disease.min())
    lesion = disease - np.quantile(disease, 1 - header.infection_share)
    vessel = 0.05 - np.abs(smooth_noise(shape, 3, rng)) - np.clip(0.5 - lungs, 0, None) * 0.1
    fields = (body, spine, left, right, lesion, vessel, heart, liver, aorta)
    return Anatomy(*(field.astype(np.float32) for field in fields))


def ellipsoid(x: Array, y: Array, z: Array, radii: tuple[float, float, float]) -> Array:
    """Positive inside, 1 in the middle."""
    a, b, c = radii
    inside: Array = 1 - np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    return inside


def smooth_noise(shape: list[int], sigma: float, rng: np.random.Generator) -> Array:
    """Gaussian noise of unit variance with structures `sigma` voxels of a 96-voxel axis wide."""
    widths = [sigma * n / FINEST for n in shape]
    noise: Array = gaussian_filter(rng.standard_normal(shape), widths)
    scaled: Array = noise / noise.std()
    return scaled


def render(
    header: Header, anatomy: Anatomy, rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Intensities and labels on the full grid, a few planes at a time."""
    image = np.empty(header.size, np.int16)
    label = np.empty(header.size, np.uint8)
    x, y, z = header.size
    coarse_z = anatomy.body.shape[2]
    centres = (np.arange(z) + 0.5) * coarse_z / z - 0.5
    for plane in range(z):
        low = int(np.clip(np.floor(centres[plane]), 0, coarse_z - 1))
        high = min(low + 1, coarse_z - 1)
        part = float(np.clip(centres[plane] - low, 0, 1))
        here = {
            name: widen((1 - part) * field[:, :, low] + part * field[:, :, high], (x, y))
            for name, field in vars(anatomy).items()
        }
        hu, classes = paint(here)
        image[:, :, plane] = to_scanner(hu + 15 * rng.standard_normal((x, y)), header.is_hu)
        label[:, :, plane] = classes
    return image, label


def widen(plane: Array, shape: tuple[int, int]) -> Array:
    """One plane of a field on the full grid."""
    wide = apply_operators(plane[:, :, None].astype(np.float32), (*shape, 1), (1, 1, 1))
    return wide[:, :, 0]


def paint(fields: dict[str, Array]) -> tuple[Array, NDArray[np.uint8]]:
    """HU and labels of one plane from its fields."""
    hu = np.where(fields["body"] > 0, np.where(fields["body"] > 0.12, MUSCLE, FAT), AIR)
    hu[fields["spine"] > 0] = BONE
    left, right = fields["left"], fields["right"]
    lungs = np.maximum(left, right) > 0
    for name, value in (("liver", LIVER), ("heart", HEART), ("aorta", AORTA)):
        hu[fields[name] > 0] = value
        lungs &= fields[name] <= 0
    hu[lungs] = LUNG
    hu[lungs & (fields["vessel"] > 0)] = VESSEL
    sick = lungs & (fields["lesion"] > 0)
    hu[sick] = GROUND_GLASS
    hu[sick & (fields["lesion"] > 0.6)] = CONSOLIDATION
    classes = np.where(lungs, np.where(left >= right, 1, 2), 0).astype(np.uint8)
    classes[sick] = INFECTION
    return hu.astype(np.float32), classes


def to_scanner(hu: Array, is_hu: bool) -> NDArray[np.int16]:
    """Integers as in the published files: HU, or the lung window as 0..255."""
    if is_hu:
        hounsfield: NDArray[np.int16] = np.rint(np.clip(hu, -1024, 3071)).astype(np.int16)
        return hounsfield
    low, high = WINDOW_HU
    gray: NDArray[np.int16] = np.rint((np.clip(hu, low, high) - low) / (high - low) * 255).astype(
        np.int16
    )
    return gray


def write(path: Path, array: NDArray[np.generic], header: Header) -> None:
    """Write one volume (x, y, z) as compressed NIfTI in LAS orientation."""
    picture = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    picture.SetSpacing(header.spacing_mm)
    picture.SetDirection(LAS)
    with replacing(path) as temporary:
        sitk.WriteImage(picture, str(temporary), useCompression=True, compressionLevel=1)


def make_case(folder: Path, header: Header, seed: int, for_testing: bool = False) -> None:
    """Write image and label map of one case; of a test set only the infection is labelled, as 1."""
    rng = np.random.default_rng([seed, *header.name.encode()])
    image, label = render(header, draw_anatomy(header, rng), rng)
    if for_testing:
        label = (label == INFECTION).astype(np.uint8)
    part = "Ts" if for_testing else "Tr"
    write(folder / f"images{part}" / f"{header.name}_0000.nii.gz", image, header)
    write(folder / f"labels{part}" / f"{header.name}.nii.gz", label, header)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the task's folder, as in raw/Task001_COVID")
    parser.add_argument("--scale", type=float, default=0.25, help="of the voxels along each axis")
    parser.add_argument("--cases", type=int, default=20, help="number of cases, at most 20")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--test-set",
        action="store_true",
        help="imagesTs and labelsTs with only the infection, as in An et al. 2020; use another "
        "--seed than for the training set",
    )
    parser.add_argument("--headers", type=Path, default=HEADERS, help="CSV of the real geometry")
    arguments = parser.parse_args()
    with arguments.headers.open(newline="") as file:
        rows = list(csv.DictReader(file))
    step = max(1, len(rows) // arguments.cases)
    headers = [Header.of(row, arguments.scale) for row in rows[::step][: arguments.cases]]
    for header in headers:
        make_case(arguments.folder, header, arguments.seed, arguments.test_set)
        print(f"{header.name}: {' x '.join(map(str, header.size))}", flush=True)
    if arguments.test_set:
        return
    description = declaration(
        [header.name for header in headers],
        name="COVID-19 CT phantom",
        description="made by scripts/make_phantom.py; no patient is in it",
        reference="the geometry of https://doi.org/10.5281/zenodo.3757476",
        licence="CC0",
    )
    write_json(arguments.folder / "dataset.json", description)


if __name__ == "__main__":
    main()
