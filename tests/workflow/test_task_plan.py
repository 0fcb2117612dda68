"""Labels of both sides against the axes of the headers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.planner.compose import PlanOptions
from autoseg.workflow.task_plan import survey_task, write_plan
from autoseg.workflow.workspace import Workspace


def write_task(workspace: Workspace, axis: int, **declared: object) -> Path:
    """A task whose labels 1 and 2 lie apart along one axis (0 is left-right)."""
    folder = workspace.root / "raw" / "Task700_Sides"
    for case in range(6):
        rng = np.random.default_rng(case)
        label = np.zeros((16, 16, 16), np.uint8)
        np.moveaxis(label, axis, 0)[2:5, 6:9, 6:9] = 1
        np.moveaxis(label, axis, 0)[11:14, 6:9, 6:9] = 2
        image = (100 * label + rng.normal(size=label.shape)).astype(np.float32)
        for kind, array in (("imagesTr", image), ("labelsTr", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            ending = "_0000.nii.gz" if kind == "imagesTr" else ".nii.gz"
            stored = sitk.GetImageFromArray(array.T)
            sitk.WriteImage(stored, str(folder / kind / f"c{case}{ending}"))
    values = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "left kidney": 1, "right kidney": 2},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(values | declared))
    return folder


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_of_both_sides_are_exchanged_only_if_they_lie_side_by_side(
    tmp_path: Path, axis: int, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(tmp_path)
    surveyed = survey_task(workspace, write_task(workspace, axis), 1)
    plan = write_plan(workspace, surveyed, PlanOptions(), 1, None)
    assert plan.mirrored_labels == (((1, 2),) if axis == 0 else ())
    assert ("do not lie side by side" in plan.provenance["mirrored_labels"].evidence) == (axis != 0)
    assert ("left kidney and right kidney lie apart" in capsys.readouterr().err) == (axis != 0)


def test_declared_sides_are_exchanged_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(tmp_path)
    folder = write_task(workspace, 1, mirrored_labels={"left kidney": "right kidney"})
    plan = write_plan(workspace, survey_task(workspace, folder, 1), PlanOptions(), 1, None)
    assert plan.mirrored_labels == ((1, 2),)
    assert "lie apart along the front-back axis" in capsys.readouterr().err
