"""The networks of a model for other programs: ONNX and OpenVINO, with what their users must know.

Only the network of one patch is exported. Preprocessing, the sliding window and the way back to the
scan's grid are in the plan, which goes along.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg import __version__
from autoseg.common.arrays import Triple
from autoseg.common.errors import AutosegError, RunError, install_hint
from autoseg.common.files import (
    cannot_write,
    remove_leftovers_of_dead,
    sha256_of,
    temporary_for,
    write_json,
    write_text,
)
from autoseg.common.progress import by_axis
from autoseg.image.geometry import Geometry
from autoseg.image.image import Image
from autoseg.models.folder import fold_name
from autoseg.networks.unet import UNet
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Clip, Resample
from autoseg.prediction import backends
from autoseg.prediction.backends import INPUT, OUTPUT
from autoseg.prediction.model import Model
from autoseg.preprocessing.steps import prepare

# A patch with the statistics of real ones, where no scan is at hand.

UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
ORDINARY = (0.0, 1000.0)


def example_patch(plan: Plan, seed: int = 0) -> Tensor:
    """What the plan's network might see: (1, channel, *patch), a cascade's masks included.

    Blocks of different brightness in noise go through the plan's own preprocessing, but for
    resampling, and then have the range and the spread that it gives to scans.
    """
    rng = np.random.default_rng(seed)
    raw = np.stack([_blocks(plan, channel, rng) for channel in range(len(plan.channels))])
    patch = plan.sampling.patch_size
    x, y, z = (spacing or 1.0 for spacing in plan.target_spacing_mm)
    image = Image(raw, Geometry(patch, (x, y, z), (0.0, 0.0, 0.0), UPRIGHT))
    steps = tuple(step for step in plan.preprocessing if not isinstance(step, Resample))
    found = prepare(plan.model_copy(update={"preprocessing": steps}), image).image
    masks = np.zeros((plan.input_channels - len(found), *patch), np.float32)
    parts = _coarse(rng.integers(0, len(masks) + 1, (4, 4, 4)), patch)
    for part, mask in enumerate(masks, start=1):
        mask[parts == part] = 1
    return torch.from_numpy(np.concatenate([found, masks]))[None]


def _blocks(plan: Plan, channel: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Intensities before preprocessing, within the channel's window if it has one."""
    windows = [
        step.window
        for step in plan.preprocessing
        if isinstance(step, Clip) and step.channel in (None, channel)
    ]
    low, high = windows[0] if windows else ORDINARY
    patch = plan.sampling.patch_size
    bright = _coarse(rng.uniform(0.1, 0.9, (4, 4, 4)), patch) + rng.normal(0, 0.05, patch)
    return np.asarray(low + (high - low) * bright, np.float32)


def _coarse(blocks: NDArray[Any], patch: Triple) -> NDArray[Any]:
    """Blocks (4, 4, 4) widened to a patch."""
    x, y, z = (np.arange(size) * 4 // size for size in patch)
    return blocks[np.ix_(x, y, z)]


# A network as an ONNX file, and its execution in onnxruntime; an extra that may be missing.

NEEDS = ("onnx", "onnxruntime", "onnxscript")  # torch's exporter is built on onnxscript


def is_installed() -> bool:
    """Whether all that it needs can be imported; imports nothing."""
    return all(importlib.util.find_spec(name) for name in NEEDS)


def write_onnx(network: UNet, patch: Triple, path: Path) -> None:
    """Write `patches` (any B, channel, x, y, z) to `logits` in float32, as one file.

    Args:
        network: in evaluation mode, on the CPU.
        patch: the patch size (x, y, z).
        path: ends with `.onnx`.
    """
    import onnx

    first = next(layer for layer in network.modules() if isinstance(layer, torch.nn.Conv3d))
    example = torch.zeros(2, first.in_channels, *patch)  # a batch of 1 would be taken for fixed
    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: batch},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # they name source files of this machine
    onnx.save(proto, path)


def run_onnx(path: Path, patches: Tensor) -> Tensor:
    """Logits of patches, by onnxruntime in float32 on as many threads as torch has."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run([OUTPUT], {INPUT: patches.numpy()})
    return torch.from_numpy(logits)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporter says of packages that it could use, and of its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# What the user of an exported network must know: as JSON for programs, as text for people.

SPACE = ["x", "y", "z"]


def describe(model: Model) -> dict[str, Any]:
    """Input, preprocessing, output and origin of a model's networks, as plain values."""
    plan = model.plan
    values = plan.model_dump(mode="json")
    return {
        "autoseg": __version__,
        "torch": torch.__version__,
        "task": plan.task,
        "plan": plan.name,
        "plan_id": plan.id,
        "folds": list(model.folds),
        "input": {
            "name": INPUT,
            "type": "float32",
            "axes": ["batch", "channel", *SPACE],
            "channels": _channels(plan),
            "patch_size": values["sampling"]["patch_size"],
            "spacing_mm": values["target_spacing_mm"],
        },
        "preprocessing": values["preprocessing"],
        "output": {
            "name": OUTPUT,
            "type": "float32",
            "axes": ["batch", "output", *SPACE],
            "activation": "sigmoid" if plan.classes.are_regions else "softmax",
            "outputs": _outputs(plan),
        },
        "sliding_window": values["inference"],
    }


def _channels(plan: Plan) -> list[str]:
    """The image's channels, and of a cascade one mask of each part of the previous stage."""
    if plan.previous_stage is None:
        return list(plan.channels)
    parts = [", ".join(map(str, values)) for values in plan.classes.parts[1:]]
    return [*plan.channels, *(f"mask of label {part} by {plan.previous_stage}" for part in parts)]


def _outputs(plan: Plan) -> list[dict[str, Any]]:
    """Name and label value of each output; regions have no output of the background."""
    pairs = list(zip(plan.classes.names, plan.classes.painted, strict=True))
    return [{"class": name, "label": value} for name, value in pairs[plan.classes.are_regions :]]


def read_me(plan: Plan, facts: dict[str, Any], files: Sequence[str]) -> str:
    """The same in words."""
    given, output, window = facts["input"], facts["output"], facts["sliding_window"]
    outputs = [f"{each['class']} (label {each['label']})" for each in output["outputs"]]
    spacing = by_axis(["its own" if each is None else f"{each:g}" for each in given["spacing_mm"]])
    return f"""# {plan.task}, plan {plan.name} ({plan.id}): networks of one patch

Each of these files is the network of one fold: {", ".join(files)}.
Average the probabilities of the folds. `plan.json` holds every value that decides the result,
`export.json` what stands here, and a checksum of each file.

## Before: preprocessing of the whole scan, in this order
{_numbered([_step(step) for step in facts["preprocessing"]], 1)}

Resampling of order 3 is `skimage.transform.resize(order=3, mode="edge", anti_aliasing=False)`.
Scans smaller than a patch are padded with zeros.

## Input `{given["name"]}`: float32 (batch, channel, x, y, z)
Any batch of patches of {by_axis(given["patch_size"])} voxels of {spacing} mm. Axes are in the order
x, y, z; arrays of SimpleITK are z, y, x and have to be turned around. Channels:

{_numbered(given["channels"], 0)}

## Output `{output["name"]}`: float32 (batch, output, x, y, z)
Logits; their {output["activation"]} gives probabilities. Outputs:

{_numbered(outputs, 0)}

## After: from patches to the scan
Patches overlap by {by_axis(window["overlap"])} voxels or more. Where they do, the mean of their
probabilities is taken, with {window["weighting"]} weights.
"""


def _step(step: dict[str, Any]) -> str:
    """Such as `clip: window [-1250, 250]`; a setting of null is left to the scan."""
    settings = [f"{key} {value}" for key, value in step.items() if key != "step"]
    told = ", ".join(text for text in settings if not text.endswith(" None"))
    return f"{step['step']}: {told}" if told else str(step["step"])


def _numbered(lines: Sequence[str], start: int) -> str:
    return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, start)) or "none"


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
    "onnx": Format(".onnx", write_onnx, run_onnx, is_installed),
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
                f"--format {name} needs libraries that are missing; run: {install_hint('export')}"
            )
    patch = example_patch(model.plan)
    with _new_folder(out) as folder:
        model.plan.save(folder / "plan.json")
        differences = {
            f"{fold_name(fold)}{FORMATS[name].ending}": _export(
                network, model, name, fold, folder, patch
            )
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
    path = folder / f"{fold_name(fold)}{kind.ending}"
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
