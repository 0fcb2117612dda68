"""Which plan the models in a folder belong to."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.common.errors import AutosegError
from autoseg.plan.plan import load_plan
from autoseg.workflow.fold import claim
from tests.making import tiny_plan

PLAN = tiny_plan(training={"epochs": 2})
LONGER = tiny_plan(training={"epochs": 3, "early_stopping_epochs": 2})
OTHER = tiny_plan(
    training={"epochs": 3, "seed": 1, "steps_per_epoch": 7, "validation_steps": 1},
    sampling={"batch_size": 3},
)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Models of two folds, one finished and one begun."""
    for fold, name in (("0", "final"), ("2", "latest")):
        (tmp_path / f"fold_{fold}").mkdir()
        (tmp_path / f"fold_{fold}" / f"{name}.safetensors").touch()
    PLAN.save(tmp_path / "plan.json")
    return tmp_path


def owner(models: Path) -> str:
    return load_plan(models / "plan.json").id


def test_an_empty_folder_is_claimed(tmp_path: Path) -> None:
    claim(PLAN, tmp_path / "models", "0", resume=False)
    assert owner(tmp_path / "models") == PLAN.id


def test_folders_without_weights_belong_to_no_plan(tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    OTHER.save(tmp_path / "plan.json")
    claim(PLAN, tmp_path, "0", resume=False)
    assert owner(tmp_path) == PLAN.id


@pytest.mark.parametrize("resume", [False, True])
def test_the_same_plan_stays(
    models: Path, resume: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    claim(PLAN, models, "1", resume)
    assert owner(models) == PLAN.id
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("resume", [False, True])
def test_another_plan_is_refused_with_the_keys_that_differ(models: Path, resume: bool) -> None:
    message = (
        r"another plan \(fold_0, fold_2\).* sampling.batch_size, training.seed, "
        r"training.epochs, training.steps_per_epoch, \.\.\.;"
    )
    with pytest.raises(AutosegError, match=message):
        claim(OTHER, models, "0", resume)
    assert owner(models) == PLAN.id


def test_a_longer_plan_takes_over_by_resume_alone(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = (
        r"training.epochs, training.early_stopping_epochs \(fold_0, fold_2\); .*--resume.*--name"
    )
    with pytest.raises(AutosegError, match=message):
        claim(LONGER, models, "0", resume=False)
    assert owner(models) == PLAN.id
    claim(LONGER, models, "0", resume=True)
    assert owner(models) == LONGER.id
    assert "extend fold_2 (--resume)" in capsys.readouterr().err
