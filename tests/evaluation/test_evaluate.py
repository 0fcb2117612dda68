from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from autoseg.common.errors import DataError
from autoseg.evaluation.evaluate import evaluate_case, evaluate_folders
from autoseg.evaluation.labels import ScoredClasses
from autoseg.image.image import read_label
from tests.evaluation.scores import HIPPOCAMPUS, shifted_hippocampus, write

LABELS = ScoredClasses({"Anterior": (1,), "Posterior": (2,)})
TRUTH = HIPPOCAMPUS / "labelsTr"


def cube(value: int = 1) -> np.ndarray:
    label = np.zeros((4, 4, 4), np.uint8)
    label[1:3, 1:3, 1:3] = value
    return label


def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Truth and prediction of one case in folders of their own: eight voxels of 1."""
    for folder in ("task/labelsTr", "out"):
        write(tmp_path / folder / "a.nii.gz", cube())
    return tmp_path / "task" / "labelsTr", tmp_path / "out"


def test_truth_against_itself() -> None:
    path = TRUTH / "hippocampus_003.nii.gz"
    scores = evaluate_case(path, path, LABELS)
    assert scores.case == "hippocampus_003"
    assert [scores.value(name, "Dice") for name in scores.labels] == [1.0, 1.0]
    assert scores.labels["Anterior"].n_ref == 1550
    assert scores.volume_ml["Anterior"].reference == pytest.approx(1.55)


def test_shifted_by_one_voxel(tmp_path: Path) -> None:
    shifted_hippocampus(tmp_path, (0, 1))
    name = "hippocampus_008.nii.gz"
    scores = evaluate_case(TRUTH / name, tmp_path / name, LABELS)
    truth = read_label(TRUTH / name)[0] == 1
    both = np.count_nonzero(truth & np.roll(truth, 1, axis=0))
    assert scores.value("Anterior", "Dice") == pytest.approx(both / truth.sum())
    assert scores.value("Anterior", "Dice") == pytest.approx(0.8910, abs=1e-4)
    assert scores.value("Posterior", "Dice") == pytest.approx(0.8864, abs=1e-4)


def test_regions_ignored_voxels_and_volumes(tmp_path: Path) -> None:
    truth = write(tmp_path / "t" / "a.nii.gz", cube(2), spacing_mm=(1, 2, 5))
    predicted = cube(1)
    predicted[3, 3, 3] = 1
    prediction = write(tmp_path / "p" / "a.nii.gz", predicted, spacing_mm=(1, 2, 5))
    scores = evaluate_case(truth, prediction, ScoredClasses({"whole": (1, 2), "core": (2,)}))
    assert scores.value("whole", "Dice") == pytest.approx(16 / 17)
    assert scores.value("core", "Dice") == 0
    assert scores.volume_ml["whole"].predicted == pytest.approx(0.09)
    ignoring = evaluate_case(truth, prediction, ScoredClasses({"whole": (1,)}, ignore=2))
    assert ignoring.labels["whole"].fp == 1


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "message"),
    [((4, 4, 5), (1, 1, 1), "4 x 4 x 4.*4 x 4 x 5"), ((4, 4, 4), (1, 1, 2), "spacing")],
)
def test_other_grids_are_refused(
    tmp_path: Path,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    message: str,
) -> None:
    truth = write(tmp_path / "t" / "a.nii.gz", cube())
    prediction = write(tmp_path / "p" / "a.nii.gz", np.zeros(shape, np.uint8), spacing_mm)
    with pytest.raises(DataError, match=f"a.nii.gz: .*{message}"):
        evaluate_case(truth, prediction, ScoredClasses({"x": (1,)}))


def test_folders_with_names_from_the_decathlon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = shifted_hippocampus(tmp_path, (0, 1, 2))
    summary = evaluate_folders(TRUTH, tmp_path)
    assert [case.case for case in summary.cases] == names
    assert summary.labels == ("Anterior", "Posterior")
    assert len(summary.missing) == 40 - 3
    dice = [case.mean() or 0 for case in summary.cases]
    assert dice[0] == 1
    assert dice[0] > dice[1] > dice[2]
    assert "37 of 40 cases: hippocampus_023" in capsys.readouterr().err


def test_processes_do_not_change_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shifted_hippocampus(tmp_path, (0, 1))
    alone = evaluate_folders(TRUTH, tmp_path)
    monkeypatch.setattr(
        "autoseg.common.parallel.WORKER_START_SECONDS", 0.0
    )  # so that they do start
    assert evaluate_folders(TRUTH, tmp_path, processes=2) == alone


def test_a_prediction_without_truth_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, predicted = folders(tmp_path)
    write(predicted / "b.nii.gz", cube())
    summary = evaluate_folders(truth, predicted)
    assert [case.case for case in summary.cases] == ["a"]
    assert summary.missing == ()
    assert "1 prediction without a reference: b" in capsys.readouterr().err


def test_other_endings_and_hidden_files(tmp_path: Path) -> None:
    truth, predicted = folders(tmp_path)
    (predicted / "a.nii.gz").unlink()
    write(predicted / "a.nrrd", cube())
    (predicted / "._a.nii.gz").write_text("of a Mac")
    (predicted / "notes.txt").write_text("")
    assert evaluate_folders(truth, predicted).foreground_mean() == 1


def test_no_common_case(tmp_path: Path) -> None:
    truth, predicted = folders(tmp_path)
    (predicted / "a.nii.gz").rename(predicted / "z.nii.gz")
    with pytest.raises(DataError, match=r"out: .*labelsTr \(z / a\)"):
        evaluate_folders(truth, predicted)


def test_folders_missing_empty_or_with_twins(tmp_path: Path) -> None:
    truth, predicted = folders(tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        evaluate_folders(tmp_path / "nowhere", predicted)
    with pytest.raises(DataError, match=str(tmp_path)):
        evaluate_folders(truth, tmp_path)
    write(predicted / "a.nrrd", cube())
    with pytest.raises(DataError, match=r"a\.nii\.gz and a\.nrrd"):
        evaluate_folders(truth, predicted)


def declare(truth: Path, labels: dict[str, object]) -> None:
    declared = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (truth.parent / "dataset.json").write_text(json.dumps(declared))


def test_names_and_ignore_label_from_nnunet(tmp_path: Path) -> None:
    truth, predicted = folders(tmp_path)
    declare(truth, {"background": 0, "tumour": 1, "ignore": 2})
    label = cube()
    label[0] = 2
    write(truth / "a.nii.gz", label)
    invented = cube()
    invented[0] = 1
    write(predicted / "a.nii.gz", invented)
    summary = evaluate_folders(truth, predicted)
    assert summary.labels == ("tumour",)
    assert summary.foreground_mean() == 1


def test_the_model_knows_the_names_better(tmp_path: Path) -> None:
    truth, predicted = folders(tmp_path)
    declare(truth, {"background": 0, "tumour": 1, "ignore": 2})
    named = {"labels": {"background": [0], "lesion": [1, 3]}}
    (predicted / "predictions.json").write_text(json.dumps(named))
    assert evaluate_folders(truth, predicted).labels == ("lesion",)


def test_names_without_any_file(tmp_path: Path) -> None:
    truth, predicted = folders(tmp_path)
    invented = cube()
    invented[0, 0, 0] = 7
    write(predicted / "a.nii.gz", invented)
    summary = evaluate_folders(truth, predicted)
    assert summary.labels == ("1", "7")
    assert [summary.cases[0].value(name, "Dice") for name in summary.labels] == [1.0, 0.0]


def test_given_labels_win(tmp_path: Path) -> None:
    truth, predicted = folders(tmp_path)
    assert evaluate_folders(truth, predicted, ScoredClasses({"mine": (1,)})).labels == ("mine",)


def test_nothing_to_score(tmp_path: Path) -> None:
    truth, predicted = folders(tmp_path)
    for folder in (truth, predicted):
        write(folder / "a.nii.gz", cube(0))
    with pytest.raises(DataError, match="labelsTr"):
        evaluate_folders(truth, predicted)


def test_broken_predictions_json(tmp_path: Path) -> None:
    truth, predicted = folders(tmp_path)
    (predicted / "predictions.json").write_text('{"labels": {"x": 1}}')
    with pytest.raises(DataError, match=r"predictions\.json: .*labels\.x"):
        evaluate_folders(truth, predicted)
