"""What the user of an exported network must know: as JSON for programs, as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from autoseg import __version__
from autoseg.plan.plan import Plan
from autoseg.prediction.backends import INPUT, OUTPUT
from autoseg.prediction.model import Model

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
    spacing = _times(["its own" if each is None else f"{each:g}" for each in given["spacing_mm"]])
    return f"""# {plan.task}, plan {plan.name} ({plan.id}): networks of one patch

Each of these files is the network of one fold: {", ".join(files)}.
Average the probabilities of the folds. `plan.json` holds every value that decides the result,
`export.json` what stands here, and a checksum of each file.

## Before: preprocessing of the whole scan, in this order
{_numbered([_step(step) for step in facts["preprocessing"]], 1)}

Resampling of order 3 is `skimage.transform.resize(order=3, mode="edge", anti_aliasing=False)`.
Scans smaller than a patch are padded with zeros.

## Input `{given["name"]}`: float32 (batch, channel, x, y, z)
Any batch of patches of {_times(given["patch_size"])} voxels of {spacing} mm. Axes are in the order
x, y, z; arrays of SimpleITK are z, y, x and have to be turned around. Channels:

{_numbered(given["channels"], 0)}

## Output `{output["name"]}`: float32 (batch, output, x, y, z)
Logits; their {output["activation"]} gives probabilities. Outputs:

{_numbered(outputs, 0)}

## After: from patches to the scan
Patches overlap by {_times(window["overlap"])} voxels or more. Where they do, the mean of their
probabilities is taken, with {window["weighting"]} weights.
"""


def _step(step: dict[str, Any]) -> str:
    """Such as `clip: window [-1250, 250]`; a setting of null is left to the scan."""
    settings = [f"{key} {value}" for key, value in step.items() if key != "step"]
    told = ", ".join(text for text in settings if not text.endswith(" None"))
    return f"{step['step']}: {told}" if told else str(step["step"])


def _numbered(lines: Sequence[str], start: int) -> str:
    return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, start)) or "none"


def _times(sizes: Sequence[Any]) -> str:
    return " x ".join(map(str, sizes))
