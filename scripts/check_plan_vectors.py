"""Compare autoseg's rules with plans that nnU-Net made from the same figures.

The file is a list of {"input", "transpose_forward", "configurations"}, axes in z, y, x order; a
configuration's entries per axis are in the transposed order, as in nnU-Net's plans file. Every
difference is printed; the exit status is 0 if there is none, else 1.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.common.files import read_json
from autoseg.planner.grid import DataFigures, full_grid
from autoseg.planner.rules import Configuration, decide

CASCADE = "3d_cascade_fullres"
RELATIVE_TOLERANCE = 1e-12  # of floats, whose last digit may depend on the order of a product


def main() -> int:
    """Print the differences of all vectors and the number of equal ones."""
    parser = argparse.ArgumentParser(description="Compare the rules with plans made by nnU-Net.")
    parser.add_argument("file", type=Path, help="JSON list of inputs and plans")
    vectors = read_json(parser.parse_args().file)
    equal = 0
    for number, vector in enumerate(vectors):
        differences = list(find_differences(vector))
        equal += not differences
        for difference in differences:
            print(f"vector {number}: {difference}")
    print(f"{equal} of {len(vectors)} equal")
    return 0 if equal == len(vectors) else 1


def find_differences(vector: dict[str, Any]) -> Iterator[str]:
    """Describe where our plan for the input of a vector differs from its plan."""
    given, expected = vector["input"], vector["configurations"]
    figures = read_figures(given)
    found = decide(figures, given["planner"], given["memory_gb"])
    order = [2 - axis for axis in full_grid(figures).axes]  # axes of z, y, x arrays
    if order != vector["transpose_forward"]:
        yield f"transpose_forward: expected {vector['transpose_forward']}, found {order}"
    if set(found) != set(expected):
        yield f"configurations: expected {sorted(expected)}, found {sorted(found)}"
    for name in sorted(set(found) & set(expected)):
        theirs, ours = resolve(expected, name), as_nnunet(found[name], order)
        for key in sorted(theirs.keys() | ours.keys()):
            if not _equal(theirs.get(key), ours.get(key)):
                yield f"{name}: {key}: expected {theirs.get(key)}, found {ours.get(key)}"


def read_figures(given: dict[str, Any]) -> DataFigures:
    """The input of a vector, in x, y, z order."""
    return DataFigures(
        spacings_mm=np.array(given["spacings_mm"])[:, ::-1],
        shapes=np.array(given["shapes"])[:, ::-1],
        channels=tuple(given["channels"]),
        label_count=given["num_labels_with_background"],
        relative_size_after_cropping=given["median_relative_size_after_cropping"],
    )


def resolve(expected: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """A configuration with the values that it inherits."""
    own = dict(expected[name])
    parent = own.pop("inherits_from", None)
    return own if parent is None else {**resolve(expected, parent), **own}


def as_nnunet(configuration: Configuration, order: list[int]) -> dict[str, Any]:
    """Our configuration with nnU-Net's keys, entries per axis in the transposed order."""
    places = [
        configuration.axes.index(2 - axis) for axis in order if 2 - axis in configuration.axes
    ]

    def along(values: tuple[Any, ...]) -> list[Any]:
        return [values[place] for place in places]

    result = {
        "spacing": along(configuration.spacing_mm),
        "patch_size": along(configuration.patch_size),
        "batch_size": configuration.batch_size,
        "median_image_size_in_voxels": along(configuration.median_shape),
        "strides": [along(stride) for stride in configuration.strides],
        "kernel_sizes": [along(kernel) for kernel in configuration.kernels],
        "features_per_stage": list(configuration.features),
        "n_stages": len(configuration.features),
        "batch_dice": configuration.batch_dice,
        "normalization_schemes": list(configuration.normalization),
        "use_mask_for_norm": list(configuration.use_mask),
        "blocks": list(configuration.blocks_encoder),
    }
    if configuration.name == CASCADE:
        result["previous_stage"] = "3d_lowres"
    return result


def _equal(expected: Any, found: Any) -> bool:
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(_equal, expected, found))
    if isinstance(expected, float) and isinstance(found, float):
        return math.isclose(expected, found, rel_tol=RELATIVE_TOLERANCE)
    return bool(expected == found)


if __name__ == "__main__":
    raise SystemExit(main())
