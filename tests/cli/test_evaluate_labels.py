"""Labels to review, kept and corrected by the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from autoseg.cli.evaluate import main
from autoseg.evaluation.scores import Summary
from autoseg.image.image import read_label
from autoseg.image.label_writer import write_label
from tests.cli.making import copy_hippocampus
from tests.evaluation.making import write_fold, write_plan
from tests.making import grid

TASK = "Task004_Hippocampus"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_labels_are_reviewed_kept_and_corrected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = copy_hippocampus(tmp_path / "raw" / TASK, 4)
    models = tmp_path / "models" / TASK / "plan"
    models.mkdir(parents=True)
    write_plan(models)
    wrong, *others = names
    write_fold(models, 0, {wrong: 5, **dict.fromkeys(others, 0)})
    command = [TASK, "--workspace", str(tmp_path), "--processes", "1"]
    out = models / "cross_validation"
    file, report = out / "label_review.csv", out / "report.html"

    assert main(command) == 0
    found = rows(file)
    assert sorted(row["case"] for row in found) == sorted(names)
    assert (found[0]["case"], found[0]["suspicion"]) == (wrong, "shifted")
    assert {row["suspicion"] for row in found[1:]} == {"none"}
    assert f"label_review: {file}" in capsys.readouterr().out
    page = report.read_text(encoding="utf-8")
    assert 'id="label-1-title"' in page
    assert page.count('<article class="case" id="label-') == 1

    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[1].endswith(",")
    file.write_text("\n".join([lines[0], lines[1] + "yes", *lines[2:]]) + "\n", encoding="utf-8")
    given = tmp_path / "given"
    write_label(given / "nobody.nii.gz", *read_label(models / f"fold_0/validation/{wrong}.nii.gz"))
    assert main([*command, "--corrections", str(given)]) == 2
    assert "nobody" in capsys.readouterr().err
    corrected = tmp_path / "raw" / TASK / "labelsTr_corrected"
    assert not corrected.exists()
    (given / "nobody.nii.gz").rename(given / f"{wrong}.nii.gz")
    original = tmp_path / "raw" / TASK / "labelsTr" / f"{wrong}.nii.gz"
    before = original.read_bytes()
    assert main([*command, "--corrections", str(given)]) == 0
    assert (rows(file)[-1]["case"], rows(file)[-1]["rank"]) == (wrong, "")
    assert '<article class="case" id="label-' not in report.read_text(encoding="utf-8")
    assert original.read_bytes() == before
    assert json.loads((corrected / "corrections.json").read_text())[0]["case"] == wrong
    error = capsys.readouterr().err
    assert f"scored again, because their labels were corrected or restored: {wrong}" in error
    scores = {case.case: case.mean() for case in Summary.load(out / "summary.json").cases}
    assert scores[wrong] == 1.0


def test_corrections_that_planning_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *_ = copy_hippocampus(tmp_path / "raw" / TASK, 2)
    label, geometry = read_label(tmp_path / "raw" / TASK / "labelsTr" / f"{name}.nii.gz")
    command = [TASK, "--workspace", str(tmp_path), "--corrections", str(tmp_path / "given")]
    path, smaller = tmp_path / "given" / f"{name}.nii.gz", label[1:]
    for wrong, where, word in (
        (label + 5, geometry, "undeclared"),
        (smaller, grid(smaller.shape), "grid"),
    ):
        write_label(path, wrong, where)
        assert main(command) == 2
        assert word in capsys.readouterr().err
    assert not (tmp_path / "raw" / TASK / "labelsTr_corrected").exists()
    assert main([*command[:3], "--corrections", str(tmp_path / "nothing")]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err


def test_corrections_need_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path)
    assert main(["-g", folder, "-p", folder, "--corrections", folder]) == 2
    assert "--corrections" in capsys.readouterr().err
