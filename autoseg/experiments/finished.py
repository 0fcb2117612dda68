"""What of a run is there already; asked of files alone, so that any process can ask."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.experiments.runs import StudyRun
from autoseg.experiments.study import HeldOut
from autoseg.plan.reading import load_plan
from autoseg.workflow.workspace import Workspace

SUMMARY = "summary.json"
TEST_SET = "test_set.json"


def is_finished(run: StudyRun, workspace: Workspace) -> bool:
    """Is nothing of the run missing?"""
    return is_trained(run, workspace) and all(
        is_scored(run, each, workspace) for each in run.held_out
    )


def is_trained(run: StudyRun, workspace: Workspace) -> bool:
    """Is the model there, trained by the plan that is there now, and validated?"""
    folder = run.folder(workspace)
    if not all(path.is_file() for path in (folder / "final.safetensors", validation(folder))):
        return False
    planned = plan_id(workspace.preprocessed(run.task, run.plan))
    return planned is not None and plan_id(folder.parent) == planned


def is_scored(run: StudyRun, test_set: HeldOut, workspace: Workspace) -> bool:
    """Has the model been scored on this test set, as it is described now?"""
    folder = test_folder(run, test_set, workspace)
    there = (folder / SUMMARY).is_file()
    return there and is_described(folder, described(run, test_set, workspace))


def is_described(folder: Path, wanted: dict[str, Any]) -> bool:
    """Is what lies in a test set's folder of this description?"""
    try:
        return bool(read_json(folder / TEST_SET) == wanted)
    except AutosegError:
        return False


def validation(folder: Path) -> Path:
    """The scores of a fold's validation cases."""
    return folder / "validation" / SUMMARY


def test_folder(run: StudyRun, test_set: HeldOut, workspace: Workspace) -> Path:
    """Where predictions and scores of a test set go: beside the model that made them."""
    return run.folder(workspace) / "held_out" / test_set.name


def described(run: StudyRun, test_set: HeldOut, workspace: Workspace) -> dict[str, Any]:
    """A test set and the plan of the model, as its scores record them."""
    models = run.folder(workspace).parent
    return {"plan_id": plan_id(models), **test_set.model_dump(mode="json")}


def plan_id(folder: Path) -> str | None:
    """The id of the plan in a folder; None if there is none."""
    path = folder / "plan.json"
    try:
        return _id_of(path, path.stat().st_mtime_ns)
    except (AutosegError, OSError):
        return None


@lru_cache(maxsize=1000)
def _id_of(path: Path, _changed: int) -> str:
    return load_plan(path).id
