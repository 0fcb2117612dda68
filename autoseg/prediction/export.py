"""The networks of a model for other programs: ONNX and OpenVINO, with what their users must know.

Only the network of one patch is exported. Preprocessing, the sliding window and the way back to the
scan's grid are in the plan, which goes along.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoseg.common.arrays import Triple
from autoseg.common.errors import AutosegError, RunError
from autoseg.common.files import (
    cannot_write,
    remove_leftovers_of_dead,
    sha256_of,
    temporary_for,
    write_json,
    write_text,
)
from autoseg.networks.unet import UNet
from autoseg.prediction import backends, onnx_network
from autoseg.prediction.example_patch import example_patch
from autoseg.prediction.export_words import describe, read_me
from autoseg.prediction.model import Model

TOLERANCE = 1e-4  # of the largest logit
LEAST_SAME = 0.9999  # share of the voxels that keep their class


@dataclass(frozen=True)
class Format:
    """A kind of file that a network can be written as.

    Attributes:
        ending: of the file that is opened.
        write: the network, for patches of a size.
        run: such a file on patches.
        is_installed: whether all that it needs is there.
    """

    ending: str
    write: Callable[[UNet, Triple, Path], None]
    run: Callable[[Path, Tensor], Tensor]
    is_installed: Callable[[], bool]


FORMATS = {
    "onnx": Format(
        ".onnx", onnx_network.write_onnx, onnx_network.run_onnx, onnx_network.is_installed
    ),
    "openvino": Format(
        ".xml",
        backends.write_openvino,
        backends.run_openvino,
        backends.is_installed,
    ),
}


def export_model(model: Model, out: Path, formats: Sequence[str]) -> None:
    """Write a model's networks, its plan, and what input they take and what output they give.

    `out` appears whole, or not at all: each file is run on one patch first and compared with torch.

    Args:
        model: loaded on the CPU.
        out: a new folder.
        formats: keys of `FORMATS`.

    Raises:
        AutosegError: `out` is there already, or a library is missing.
        RunError: a file does not give the same as torch.
    """
    for name in formats:
        if not FORMATS[name].is_installed():
            raise AutosegError(
                f"--format {name} needs libraries that are missing; run: "
                "pip install 'autoseg[export]'"
            )
    patch = example_patch(model.plan)
    with _new_folder(out) as folder:
        model.plan.save(folder / "plan.json")
        differences = {
            f"fold_{fold}{FORMATS[name].ending}": _export(network, model, name, fold, folder, patch)
            for fold, network in zip(model.folds, model.networks, strict=True)
            for name in formats
        }
        facts = describe(model)
        write_json(folder / "export.json", facts | {"files": _facts_of(folder, differences)})
        write_text(folder / "README.md", read_me(model.plan, facts, list(differences)))


def _export(
    network: UNet, model: Model, name: str, fold: str, folder: Path, patch: Tensor
) -> float:
    """Write one file; returns how far its logits are from torch's."""
    kind = FORMATS[name]
    path = folder / f"fold_{fold}{kind.ending}"
    kind.write(network, model.plan.sampling.patch_size, path)
    with torch.inference_mode():
        expected = network(patch)
    return compare(kind.run(path, patch), expected, model.plan.classes.are_regions, path.name)


def compare(got: Tensor, expected: Tensor, are_regions: bool, what: str) -> float:
    """The largest difference of logits (B, output, x, y, z).

    Raises:
        RunError: it is too large, or too many voxels change their class.
    """
    difference = float((got - expected).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    classes = [(each > 0) if are_regions else each.argmax(dim=1) for each in (got, expected)]
    same = float((classes[0] == classes[1]).double().mean())
    if not (difference <= allowed and same >= LEAST_SAME):  # NaN is refused, too
        raise RunError(
            f"{what} does not give what torch gives: logits differ by {difference:.3g} (allowed "
            f"{allowed:.3g}), {same:.4%} of the voxels have the same class; nothing was exported"
        )
    return difference


def _facts_of(folder: Path, differences: dict[str, float]) -> dict[str, Any]:
    """For each file its checksum, and for those that were run their difference from torch."""
    facts: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        facts[path.name] = {"sha256": sha256_of(path)}
        if path.name in differences:
            facts[path.name]["largest_difference_of_logits"] = differences[path.name]
    return facts


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out` that becomes `out` when the block succeeds."""
    if out.exists():
        raise AutosegError(f"{out} is there already; choose another -o, or delete it")
    remove_leftovers_of_dead(out)
    temporary = temporary_for(out)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    except AutosegError as error:  # of a file in it: named as the user knows it
        raise AutosegError(str(error).replace(str(temporary), str(out))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
