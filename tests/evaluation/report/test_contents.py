"""What the report tells of a small cross-validation of real cases."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.dataset.task import read_task
from autoseg.evaluation.evaluate import CrossValidation, fold_rows, gather
from autoseg.evaluation.report.contents import (
    cross_validation_report,
    find_exhibits,
    folder_report,
)
from autoseg.evaluation.report.files import Report, Trained, decisions, write_report
from autoseg.evaluation.scores import Summary
from autoseg.image.image import read_image, read_label
from autoseg.models.log import Epoch, write_log
from autoseg.planner.explain import rows
from tests.evaluation.making import LABELS, write_plan, write_record
from tests.evaluation.report.report_pages import FINGERPRINT, write_models
from tests.evaluation.scores import HIPPOCAMPUS, case, three_cases
from tests.making import tiny_plan


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models") / "Task004_Hippocampus" / "plan")


def report_of(models: Path, validation: CrossValidation | None = None) -> Report:
    trained = Trained(models, HIPPOCAMPUS)
    found = validation or gather(models, 4)
    exhibits = trained.exhibits(found.combined)
    tables = {"Dice of the folds": fold_rows(found)}
    fingerprint = models / FINGERPRINT
    return cross_validation_report(trained, found, exhibits, fingerprint, tables, 1)


def test_a_cross_validation(models: Path) -> None:
    report = report_of(models)
    assert report.title == "Cross-validation of Task004_Hippocampus"
    assert report.key_figures["cases"] == "3"
    assert report.key_figures["folds"] == "2"
    (warning,) = report.warnings
    assert warning.endswith(": folds 2, 3")
    worst_first = ["hippocampus_008", "hippocampus_003", "hippocampus_017"]
    assert list(report.pictures) == [volume["case"] for volume in report.volumes] == worst_first
    assert [chart.title for chart in report.curves] == ["Loss", "Dice during training"]
    assert report.fingerprint is not None
    assert len(report.fingerprint.cases) == 2
    assert dict(report.versions)["autoseg"] == "1.2.3"
    links = {line.cells[0].text: line.cells[0].link for line in report.cases.lines}
    assert links["hippocampus_008"] == "#case-1"


def test_overfitting_of_a_fold_is_reported(tmp_path: Path) -> None:
    models = write_models(tmp_path / "Task004_Hippocampus" / "plan")
    epochs = [
        Epoch(n, 9, 1e-3, 1 - 0.1 * n, {}, 2.0, None, {"b": 1.0, "x": dice})
        for n, dice in enumerate([0.5, 0.5, 0.5, 0.2, 0.1, 0.1, 0.0, 0.0, 0.0])
    ]
    write_log(models / "fold_0", epochs)
    (warning,) = [text for text in report_of(models).warnings if "overfitting" in text]
    assert re.match(r"Fold 0: .* 0\.50 \(epoch 3\) .* 0\.00 in 6 epochs", warning)


def test_what_is_missing_is_left_out(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = models.parent / "empty"
    write_plan(empty)
    found = gather(models)
    trained = Trained(empty, None)
    report = cross_validation_report(trained, found, [], empty / FINGERPRINT, {}, 1)
    assert (report.pictures, report.curves, report.fingerprint, report.versions) == (
        {},
        (),
        None,
        (),
    )
    assert report.warnings == ()
    (empty / FINGERPRINT).write_text("{}")
    cross_validation_report(trained, found, [], empty / FINGERPRINT, {}, 1)
    assert FINGERPRINT in capsys.readouterr().err


def test_only_some_cases_are_drawn(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoseg.evaluation.report.contents.MOST_CASES", 2)
    report = report_of(models)
    assert list(report.pictures) == ["hippocampus_008", "hippocampus_003"]
    assert len(report.summary.cases) == 3


def test_folders_with_scans(models: Path) -> None:
    predicted = models / "fold_0" / "validation"
    summary = gather(models).folds[0]
    exhibits = find_exhibits(summary, HIPPOCAMPUS / "imagesTr", LABELS)
    truth = HIPPOCAMPUS / "labelsTr"
    report = folder_report(truth, predicted, summary, exhibits, LABELS, 1)
    assert list(report.pictures) == ["hippocampus_008", "hippocampus_003"]
    assert report.facts["reference"] == str(truth)
    assert report.facts["predicted by plan"] == "p"
    ((_, record),) = report.times.values()
    assert record is not None
    assert record.seconds == (1.5, 1.5)
    assert not report.plan


def test_scans_that_are_not_there_are_reported(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_exhibits(gather(models).combined, tmp_path, LABELS) == []
    assert "3 of 3 cases" in capsys.readouterr().err


def test_many_missing_cases_are_counted() -> None:
    summary = replace(three_cases(), missing=tuple(f"m{i:02}" for i in range(12)))
    (warning,) = folder_report(Path("t"), Path("p"), summary, [], LABELS, 1).warnings
    assert warning.startswith("12 cases have no prediction and count in no mean: m00, m01")
    assert warning.endswith("m09 and 2 more")


def test_nothing_was_scored() -> None:
    report = folder_report(Path("t"), Path("p"), Summary(()), [], LABELS, 1)
    assert report.key_figures == {"mean Dice": "-", "cases": "0"}


def test_of_many_classes_the_worst_is_named() -> None:
    counts = {f"organ{i}": (i, 5, 5, 90) for i in range(1, 7)}
    report = folder_report(Path("t"), Path("p"), Summary((case("a", **counts),)), [], LABELS, 1)
    assert report.key_figures["lowest Dice: organ1"] == "0.167"
    assert len(report.key_figures) == 3


def test_every_value_of_a_plan_is_listed_once() -> None:
    plan = tiny_plan()
    keys = [row.key for values in decisions(plan).values() for row in values]
    assert sorted(keys) == sorted(row.key for row in rows(plan))


def test_the_page_has_the_figures_of_the_data(tmp_path: Path) -> None:
    """Counted in the files, by hand."""
    models = write_models(tmp_path / "Task004_Hippocampus" / "plan")
    write_report(tmp_path / "page.html", report_of(models))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    cases = read_task(HIPPOCAMPUS).cases[:2]
    maps = [read_label(each.label)[0] for each in cases]
    voxels = [np.count_nonzero(each == 1) for each in maps]
    share = 100 * sum(voxels) / sum(each.size for each in maps)
    cells = ["1", "2", f"{share:.3g} %", f"{np.median(voxels) / 1000:.3g}"]
    row = '<th scope="row">Anterior</th>' + "".join(f"<td>{cell}</td>" for cell in cells)
    assert row in text
    sizes = np.array([each.shape for each in maps])
    median = " x ".join(f"{size:.4g}" for size in np.median(sizes, axis=0))
    assert f"<dd>{median}</dd>" in text
    assert "<dd>MRI</dd>" in text
    image = np.concatenate(
        [
            read_image(each.images).array[0][label > 0]
            for each, label in zip(cases, maps, strict=True)
        ]
    )
    assert f"<td>{image.max():.4g}</td>" in text
    for part in ("1.5 s", "cases predicted", "All 3 cases, the worst first"):
        assert part in text


def test_the_device_of_prediction_is_listed(models: Path) -> None:
    write_record(models / "fold_1" / "validation", {"hippocampus_017": 1.0})
    assert dict(report_of(models).versions)["device"] == "cpu"
