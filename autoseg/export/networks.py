"""The networks of a model as ONNX and OpenVINO files for other programs, with a description.

Only the network of one patch is exported. Preprocessing, the sliding window and the resampling back
to the scan's grid are described by the plan, which is exported, too.
"""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from autoseg import __version__
from autoseg.common import files
from autoseg.common.arrays import Array, Floats, Triple
from autoseg.common.errors import AutosegError, RunError, install_hint
from autoseg.common.files import sha256_of, texts_in, write_json, write_text
from autoseg.common.locks import writing
from autoseg.common.pages import fill
from autoseg.common.progress import by_axis
from autoseg.image.image import from_array
from autoseg.models.folder import PLAN, fold_name
from autoseg.networks.unet import UNet
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Clip, Resample
from autoseg.prediction import backends
from autoseg.prediction.backends import INPUT, OUTPUT
from autoseg.prediction.model import Model
from autoseg.preprocessing.steps import prepare

README = Path(__file__).with_name("README.md.j2")
TEXT = texts_in(Path(__file__).with_name("messages.json"))
TOLERANCE = 1e-4  # of the largest logit
LEAST_SAME = 0.9999  # share of the voxels that keep their class
USUAL_RANGE = (0.0, 1000.0)  # of intensities, without a clip step


def write_onnx(network: UNet, patch: Triple, path: Path) -> None:
    """Write `patches` (any B, channel, x, y, z) -> `logits` in float32, as one file.

    Args:
        network: in evaluation mode, on the CPU.
        patch: the patch size (x, y, z).
        path: ends with `.onnx`.
    """
    import onnx

    first = next(layer for layer in network.modules() if isinstance(layer, torch.nn.Conv3d))
    example = torch.zeros(2, first.in_channels, *patch)  # torch would keep a batch of 1 fixed
    batch = torch.export.Dim("batch", min=1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
    names |= {"dynamic_shapes": ({0: batch},)}
    with warnings.catch_warnings(action="ignore"):  # about optional packages and its own code
        program = torch.onnx.export(network, (example,), dynamo=True, verbose=False, **names)
        assert program is not None
        proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # they name source files of this machine
    onnx.save(proto, path)


def run_onnx(path: Path, patches: Tensor) -> Tensor:
    """Logits of patches, by onnxruntime in float32 on as many threads as torch uses."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run([OUTPUT], {INPUT: patches.numpy()})
    return torch.from_numpy(logits)


class ExportFormat(NamedTuple):
    """A file format for networks.

    Attributes:
        ending: of the file that is opened.
        write: writes a network for patches of a size.
        run: runs such a file on patches.
        needs: the required libraries.
    """

    ending: str
    write: Callable[[UNet, Triple, Path], None]
    run: Callable[[Path, Tensor], Tensor]
    needs: tuple[str, ...]

    def is_installed(self) -> bool:
        """Whether the required libraries are installed."""
        return all(map(importlib.util.find_spec, self.needs))


FORMATS = {
    # torch's exporter is built on onnxscript
    "onnx": ExportFormat(".onnx", write_onnx, run_onnx, ("onnx", "onnxruntime", "onnxscript")),
    "openvino": ExportFormat(".xml", backends.write_openvino, backends.run_openvino, ("openvino",)),
}


def export_model(model: Model, out: Path, formats: Sequence[str]) -> None:
    """Write a model's networks, its plan, and a description of their input and output.

    `out` appears complete or not at all: each file is run on one patch first and compared to torch.

    Args:
        model: loaded on the CPU.
        out: a new folder.
        formats: keys of `FORMATS`.

    Raises:
        AutosegError: `out` exists, or a library is missing.
        RunError: the logits of a file differ from torch's.
    """
    for name in formats:
        if not FORMATS[name].is_installed():
            raise AutosegError(f"--format {name} lacks libraries; run: {install_hint('export')}")
    plan = model.plan
    patch, differences = example_patch(plan), {}
    with new_folder(out) as folder:
        plan.save(folder / PLAN)
        for fold, network in zip(model.folds, model.networks, strict=True):
            with torch.inference_mode():
                expected = network(patch)
            for format in (FORMATS[name] for name in formats):
                path = folder / f"{fold_name(fold)}{format.ending}"
                format.write(network, plan.sampling.patch_size, path)
                logits, regions = format.run(path, patch), plan.classes.are_regions
                difference = compare(logits, expected, regions, path.name)
                differences[path.name] = {"largest_difference_of_logits": difference}
        sums: dict[str, Any] = {
            path.name: {"sha256": sha256_of(path), **differences.get(path.name, {})}
            for path in sorted(folder.iterdir())
        }
        facts = describe(model)
        write_json(folder / "export.json", facts | {"files": sums})
        spacing = ["the scan's own" if mm is None else f"{mm:g}" for mm in plan.target_spacing_mm]
        values = plan.inference.average.partition("_")[0]
        content = {"files": list(differences), "spacing": by_axis(spacing), "values": values}
        write_text(folder / "README.md", fill(README, plan=plan, facts=facts, **content) + "\n")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out` that becomes `out` if the block succeeds."""
    with writing(out):
        if out.exists():
            raise AutosegError(f"{out} is there already; choose another -o, or delete it")
        try:
            with files.replacing_folder(out) as temporary:
                yield temporary
        except OSError as error:
            raise files.cannot_write(out, error) from error
        except AutosegError as error:  # names the temporary folder
            text = str(error).replace(str(files.temporary_for(out)), str(out))
            raise AutosegError(text) from error


def compare(got: Tensor, expected: Tensor, are_regions: bool, what: str) -> float:
    """The largest difference of logits (B, output, x, y, z).

    Raises:
        RunError: it is too large, or too many voxels change their class.
    """
    difference = float((got - expected).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    classes = [(each > 0) if are_regions else each.argmax(dim=1) for each in (got, expected)]
    same = float((classes[0] == classes[1]).double().mean())
    if not (difference <= allowed and same >= LEAST_SAME):  # NaN fails, too
        found = f"logits by {difference:.3g} (allowed {allowed:.3g}), {same:.4%} of the voxels have"
        raise RunError(f"{what} differs from torch: {found} the same class; nothing was exported")
    return difference


def example_patch(plan: Plan, seed: int = 0) -> Tensor:
    """A realistic input of the plan's network: (1, channel, *patch), with a cascade's masks.

    Noisy blocks of different intensities go through the plan's own preprocessing except for
    resampling, so they have the range and the standard deviation of preprocessed scans.
    """
    rng = np.random.default_rng(seed)
    patch = plan.sampling.patch_size
    raw = np.stack([_blocks(plan, channel, rng) for channel in range(len(plan.channels))])
    image = from_array(raw, [spacing or 1.0 for spacing in plan.target_spacing_mm])
    steps = tuple(step for step in plan.preprocessing if not isinstance(step, Resample))
    found = prepare(plan.model_copy(update={"preprocessing": steps}), image).image
    masks = np.zeros((plan.input_channels - len(found), *patch), np.float32)
    parts = _widened(rng.integers(0, len(masks) + 1, (4, 4, 4)), patch)
    for part, mask in enumerate(masks, start=1):
        mask[parts == part] = 1
    return torch.from_numpy(np.concatenate([found, masks]))[None]


def _blocks(plan: Plan, channel: int, rng: np.random.Generator) -> Floats:
    """Intensities before preprocessing, within the channel's window if it has one."""
    clips = (step for step in plan.preprocessing if isinstance(step, Clip))
    windows = (step.window for step in clips if step.channel in (None, channel))
    low, high = next(windows, USUAL_RANGE)
    patch = plan.sampling.patch_size
    values = _widened(rng.uniform(0.1, 0.9, (4, 4, 4)), patch) + rng.normal(0, 0.05, patch)
    return np.asarray(low + (high - low) * values, np.float32)


def _widened(blocks: Array, patch: Triple) -> Array:
    """Blocks (4, 4, 4), nearest neighbour resampled to a patch."""
    return blocks[np.ix_(*(np.arange(size) * 4 // size for size in patch))]


def identity(plan: Plan) -> dict[str, str]:
    """What names a plan."""
    return {"task": plan.task, "plan": plan.name, "plan_id": plan.id}


def describe(model: Model) -> dict[str, Any]:
    """Input, preprocessing, output and origin of a model's networks, for programs."""
    plan, channels = model.plan, list(model.plan.channels)
    values, classes = plan.model_dump(mode="json"), plan.classes
    # Regions have no output of the background.
    outputs = list(zip(classes.names, classes.painted, strict=True))[int(classes.are_regions) :]
    patches: dict[str, Any] = {"type": "float32", "axes": ["batch", "channel", "x", "y", "z"]}
    if plan.previous_stage is not None:  # a cascade takes one mask for each part
        parts = (", ".join(map(str, part)) for part in classes.parts[1:])
        channels += [f"mask of label {part} by {plan.previous_stage}" for part in parts]
    given: dict[str, Any] = {"name": INPUT, **patches, "channels": channels}
    given |= {"patch_size": values["sampling"]["patch_size"]}
    given |= {"spacing_mm": values["target_spacing_mm"], "orientation": plan.orientation}
    found: dict[str, Any] = {"name": OUTPUT, **patches, "axes": ["batch", "output", "x", "y", "z"]}
    found["activation"] = "sigmoid" if classes.are_regions else "softmax"
    found["outputs"] = [{"class": name, "label": value} for name, value in outputs]
    about: dict[str, Any] = {"autoseg": __version__, "torch": torch.__version__, **identity(plan)}
    about |= {"folds": list(model.folds), "input": given, "preprocessing": values["preprocessing"]}
    return about | {"output": found, "sliding_window": values["inference"]}
