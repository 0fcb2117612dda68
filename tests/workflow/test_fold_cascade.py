"""Which segmentations a cascade refines, and the errors where they are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.dataset.splits import Split, write_splits
from autoseg.dataset.task import Task, read_task
from autoseg.plan.plan import Plan
from autoseg.workflow.fold import claim_segmentations, find_segmentations
from autoseg.workflow.workspace import Workspace
from tests.cli.making import write_ct
from tests.making import CASCADE, tiny_plan

NAMES = tuple(f"case_{number}" for number in range(5))
LABELS = {"background": [0], "tumour": [1]}
SPLITS = (
    Split(NAMES[2:], NAMES[:2]),
    Split((*NAMES[:2], NAMES[4]), NAMES[2:4]),
    Split(NAMES[:4], NAMES[4:]),
)


def plan_of(**changes: Any) -> Plan:
    return tiny_plan(**{"task": "Task001_Würfel", "labels": LABELS} | changes)


CASCADE_PLAN = plan_of(**CASCADE)
PREVIOUS = plan_of(name="tiny-3d_lowres", configuration="3d_lowres")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ct(tmp_path_factory.mktemp("raw") / "Task001_Würfel", size=10)


@pytest.fixture
def task(raw: Path) -> Task:
    return read_task(raw)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Both plans with the same splits, and all folds of the previous stage trained."""
    made = Workspace(tmp_path)
    for plan in (CASCADE_PLAN, PREVIOUS):
        write_splits(made.preprocessed(plan.task, plan.name) / "splits.json", SPLITS)
    models = made.models(PREVIOUS.task, PREVIOUS.name)
    PREVIOUS.save(models / "plan.json")
    for fold, split in enumerate(SPLITS):
        for name in split.validation:
            folder = models / f"fold_{fold}" / "validation"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.nii.gz").touch()
        (models / f"fold_{fold}" / "final.safetensors").touch()
    return made


def claim(workspace: Workspace, task: Task, plan: Plan = CASCADE_PLAN) -> dict[str, Path] | None:
    return claim_segmentations(workspace, plan, task, NAMES)


def models_of(workspace: Workspace, plan: Plan) -> Path:
    return workspace.models(plan.task, plan.name)


def test_every_case_comes_from_the_fold_that_validated_it(workspace: Workspace, task: Task) -> None:
    found = claim(workspace, task)
    assert found is not None
    assert list(found) == list(NAMES)
    folds = {name: path.parents[1].name for name, path in found.items()}
    for fold, split in enumerate(SPLITS):
        for name in split.validation:
            assert folds[name] == f"fold_{fold}"
            assert name not in SPLITS[fold].train  # its model was not trained on it
            assert found[name].name == f"{name}.nii.gz"


def test_only_the_cases_that_are_needed_must_be_there(workspace: Workspace, task: Task) -> None:
    (models_of(workspace, PREVIOUS) / "fold_1/validation/case_2.nii.gz").unlink()
    found = find_segmentations(workspace, CASCADE_PLAN, task, ["case_0", "case_4"])
    assert list(found) == ["case_0", "case_4"]


def test_other_plans_refine_nothing(workspace: Workspace, task: Task) -> None:
    assert claim(workspace, task, plan_of()) is None
    assert not models_of(workspace, plan_of()).exists()


@pytest.mark.parametrize("gone", ["validation/case_2.nii.gz", "final.safetensors"])
def test_missing_folds_are_named_with_what_to_run(
    workspace: Workspace, task: Task, gone: str
) -> None:
    (models_of(workspace, PREVIOUS) / "fold_1" / gone).unlink()
    (models_of(workspace, PREVIOUS) / "fold_2" / "final.safetensors").unlink()
    with pytest.raises(AutosegError) as caught:
        claim(workspace, task)
    assert "tiny-3d_cascade_fullres refines tiny-3d_lowres" in str(caught.value)
    assert "autoseg_train Task001_Würfel fold 1 2 --plan tiny-3d_lowres" in str(caught.value)
    assert not models_of(workspace, CASCADE_PLAN).exists()


def test_a_previous_stage_that_was_never_trained(workspace: Workspace, task: Task) -> None:
    (models_of(workspace, PREVIOUS) / "plan.json").unlink()
    message = "refines tiny-3d_lowres, .* run: autoseg_train .* fold 0 1 2 --plan tiny-3d_lowres"
    with pytest.raises(AutosegError, match=message):
        claim(workspace, task)


def test_a_previous_stage_that_was_never_planned(workspace: Workspace, task: Task) -> None:
    (models_of(workspace, PREVIOUS) / "plan.json").unlink()
    (workspace.preprocessed(PREVIOUS.task, PREVIOUS.name) / "splits.json").unlink()
    with pytest.raises(AutosegError, match=r"which is not planned.*--config 3d_lowres"):
        claim(workspace, task)


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"labels": {"background": [0], "lesion": [1]}}, "labels"),
        ({"ignore_label": 7}, "ignore_label"),
        ({"channels": ["PET"], "skipped_cases": ["a"]}, "channels and skipped_cases"),
    ],
)
def test_both_stages_are_of_the_same_task(
    workspace: Workspace, task: Task, change: dict[str, Any], keys: str
) -> None:
    plan_of(name=PREVIOUS.name, configuration="3d_lowres", **change).save(
        models_of(workspace, PREVIOUS) / "plan.json"
    )
    with pytest.raises(AutosegError, match=f"refines tiny-3d_lowres, .* in {keys};"):
        claim(workspace, task)


def test_both_stages_have_the_same_splits(workspace: Workspace, task: Task) -> None:
    file = workspace.preprocessed(PREVIOUS.task, PREVIOUS.name) / "splits.json"
    write_splits(file, SPLITS[::-1])
    with pytest.raises(AutosegError, match=r"splits\.json.*splits\.json differ"):
        claim(workspace, task)


def test_every_case_must_be_validated_once(workspace: Workspace, task: Task) -> None:
    for plan in (CASCADE_PLAN, PREVIOUS):
        write_splits(workspace.preprocessed(plan.task, plan.name) / "splits.json", SPLITS[1:])
    with pytest.raises(AutosegError, match=r"splits\.json: .*case_0 \(2 "):
        claim(workspace, task)


def test_models_stay_with_the_stage_that_they_refine(workspace: Workspace, task: Task) -> None:
    claim(workspace, task)
    models = models_of(workspace, CASCADE_PLAN)
    record = read_json(models / "previous_stage.json")
    assert record == {"plan": "tiny-3d_lowres", "plan_id": PREVIOUS.id}
    (models / "fold_0").mkdir()
    (models / "fold_0" / "latest.safetensors").touch()
    claim(workspace, task)  # the same: nothing to say
    trained_anew = plan_of(name=PREVIOUS.name, configuration="3d_lowres", training={"epochs": 2})
    trained_anew.save(models_of(workspace, PREVIOUS) / "plan.json")
    with pytest.raises(AutosegError, match=f"{PREVIOUS.id} of tiny-3d_lowres"):
        claim(workspace, task)
    (models / "fold_0" / "latest.safetensors").unlink()  # no model is left
    claim(workspace, task)
    assert read_json(models / "previous_stage.json")["plan_id"] == trained_anew.id
