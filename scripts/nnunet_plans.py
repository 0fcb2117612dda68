"""nnU-Net's plans, changed to the same work as autoseg for comparisons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from side_by_side import NnUNet

from autoseg.dataset.task import Task, read_task
from autoseg.plan.plan import Plan

HIPPOCAMPUS = Path(__file__).parents[1] / "tests" / "data" / "Task004_Hippocampus"


def few_scans() -> Task:
    """The task with four scans, which are enough for a plan that is then changed."""
    task = read_task(HIPPOCAMPUS)
    return replace(task, cases=task.cases[:4])


def plan_of_task(nnunet: NnUNet) -> dict[str, Any]:
    """Run nnU-Net's fingerprint and planning, and return its plans."""
    nnunet.run("nnUNetv2_extract_fingerprint", "-np", "1")
    nnunet.run("nnUNetv2_plan_experiment")
    file = nnunet.preprocessed / "nnUNetPlans.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def write_plan(plans: dict[str, Any], path: Path) -> None:
    """Write plans to a file."""
    path.write_text(json.dumps(plans), encoding="utf-8")


def set_network(plans: dict[str, Any], plan: Plan) -> None:
    """Give 3d_fullres the patch, batch and network of one of our plans (a plain U-Net)."""
    found = plans["configurations"]["3d_fullres"]
    found["patch_size"] = list(plan.sampling.patch_size[::-1])
    found["batch_size"] = plan.sampling.batch_size
    network = plan.network
    found["architecture"]["arch_kwargs"] |= {
        "n_stages": len(network.features),
        "features_per_stage": list(network.features),
        "kernel_sizes": [list(kernel[::-1]) for kernel in network.kernels],
        "strides": [list(stride[::-1]) for stride in network.strides],
        "n_conv_per_stage": list(network.blocks_encoder),
        "n_conv_per_stage_decoder": list(network.blocks_decoder),
    }
