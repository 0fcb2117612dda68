"""A small cross-validation of real cases, from its scores to tables and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.evaluation.evaluate import gather
from autoseg.evaluation.report.files import (
    Trained,
    draw_gallery,
    fold_groups,
    write_cross_validation,
)
from tests.evaluation.making import write_fold, write_log, write_plan
from tests.evaluation.scores import HIPPOCAMPUS

FOLDS = (
    {"hippocampus_003": 1, "hippocampus_008": 3},
    {"hippocampus_017": 0},
)
CASES = sorted(name for fold in FOLDS for name in fold)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "plan"
    for number, shifts in enumerate(FOLDS):
        write_fold(folder, number, shifts)
        write_log(folder / f"fold_{number}", number, epochs=8)
    write_plan(folder)
    return folder


def test_every_table_figure_and_case(models: Path, tmp_path: Path) -> None:
    trained, found = Trained(models, HIPPOCAMPUS), gather(models)
    exhibits = trained.exhibits(found.combined)
    paths = write_cross_validation(trained, found, tmp_path, 1, exhibits)
    names = {
        *(
            f"tables/{n}.{e}"
            for n in ("dice_of_folds", "medians", "means")
            for e in ("csv", "md", "tex")
        ),
        *(
            f"figures/{n}.{e}"
            for n in ("dice", "surface", "volumes", "dice_of_folds", "loss", "examples")
            for e in ("svg", "pdf", "png")
        ),
    }
    assert {path.relative_to(tmp_path).as_posix() for path in paths} == names
    assert sorted(path.stem for path in (tmp_path / "overlays").iterdir()) == CASES
    worst, median, best = "hippocampus_008", "hippocampus_003", "hippocampus_017"
    svg = (tmp_path / "figures" / "examples.svg").read_text(encoding="utf-8")
    places = [svg.index(f"<!-- {case}") for case in (worst, median, best)]
    assert places == sorted(places)


def test_pictures_do_not_depend_on_the_processes(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoseg.common.parallel.WORKER_START_SECONDS", 0)
    exhibits = Trained(models, HIPPOCAMPUS).exhibits(gather(models).combined)[:2]
    for processes in (1, 2):
        draw_gallery(exhibits, tmp_path / str(processes), processes)
    one, two = (sorted((tmp_path / n).rglob("*.png")) for n in ("1", "2"))
    assert len(one) == len(two) == 2
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


def test_without_the_raw_task_or_the_plan(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, found = Trained(models, None), gather(models)
    exhibits = trained.exhibits(found.combined)
    paths = write_cross_validation(trained, found, tmp_path, 1, exhibits)
    assert "no case is drawn" in capsys.readouterr().err
    assert not (tmp_path / "overlays").exists()
    assert len(paths) == 9 + 15
    assert Trained(models.parent, HIPPOCAMPUS).colours == {}


def test_a_prediction_that_is_gone_is_reported(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fold(tmp_path, 0, dict(FOLDS[0]))
    write_plan(tmp_path)
    (tmp_path / "fold_0/validation/hippocampus_003.nii.gz").unlink()
    found = Trained(tmp_path, HIPPOCAMPUS).exhibits(gather(tmp_path).combined)
    assert [each.case for each in found] == ["hippocampus_008"]
    message = capsys.readouterr().err
    assert "1 of 2 cases cannot be drawn; missing for hippocampus_003: " in message


def test_missing_folds_are_in_the_figure(models: Path) -> None:
    groups = fold_groups(gather(models, fold_count=3))
    assert list(groups) == ["fold 0", "fold 1", "fold 2"]
    assert groups["fold 2"] == {}
    assert [len(values) for values in groups["fold 0"].values()] == [2, 2]


def test_the_plan_gives_classes_their_colours(models: Path) -> None:
    exhibits = Trained(models, HIPPOCAMPUS).exhibits(gather(models).combined)
    assert exhibits[0].labels == {"Anterior": (1,), "Posterior": (2,)}
    assert exhibits[0].image.name == "hippocampus_003.nii.gz"
