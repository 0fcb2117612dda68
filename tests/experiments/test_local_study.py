"""A small study on this machine: its results, and what a second start does."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from autoseg.common.errors import AutosegError, PlanError
from autoseg.common.files import read_json
from autoseg.evaluation.scores import Summary
from autoseg.experiments.attempt import score_held_out
from autoseg.experiments.local import run_studies
from autoseg.experiments.paper import write_index
from autoseg.experiments.report import write_elements
from autoseg.experiments.results import gather, read_scores
from autoseg.experiments.runs import prepare_plans, runs_of
from autoseg.experiments.status import in_short, is_finished, read_record, status_of, table
from autoseg.experiments.study import Study
from autoseg.image.image import read_label
from autoseg.plan.plan import load_plan
from autoseg.workflow.workspace import Workspace
from tests.experiments.studying import OVERRIDES, TASK, TEST_SET, study, write_task

STUDY = study(
    plans=[{"name": "flip"}, {"name": "plain", "overrides": {"augmentation": []}}],
    held_out=[TEST_SET],
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which the study of four models has run."""
    workspace = write_task(tmp_path_factory.mktemp("work"))
    assert run_studies([STUDY], workspace, jobs=2, processes=2, device="cpu") == {}
    return workspace


def rows_of(made: Study, workspace: Workspace) -> list[dict[str, str]]:
    with (workspace.study(made.name) / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_every_model_is_trained_validated_and_tested(done: Workspace) -> None:
    runs = runs_of(STUDY, done)
    assert [str(run) for run in runs] == [
        "flip-k2 fold 0",
        "flip-k2 fold 1",
        "plain-k2 fold 0",
        "plain-k2 fold 1",
    ]
    for run in runs:
        assert is_finished(run, done)
        record = read_record(run.folder(done))
        assert record is not None
        assert (record.state, record.attempts, record.error) == ("done", 1, None)
        assert Path(record.log).read_text(encoding="utf-8").startswith(f"---- {run}, 20")
    plans = [
        load_plan(done.preprocessed(TASK, name) / "plan.json") for name in ("flip-k2", "plain-k2")
    ]
    assert [len(plan.augmentation) > 0 for plan in plans] == [True, False]
    assert all(plan.splits.folds == 2 for plan in plans)
    assert plans[1].provenance["augmentation"].source == "study tiny"
    assert not [path for path in done.root.rglob(".*") if "lock" in path.name]


def test_the_test_set_is_scored_by_its_own_labels(done: Workspace) -> None:
    """Dice by counting: the tumour is 5 in the test set, and 1 in the predictions."""
    for run in runs_of(STUDY, done):
        folder = run.folder(done) / "held_out" / "elsewhere"
        summary = Summary.load(folder / "summary.json")
        assert [case.case for case in summary.cases] == ["x", "y"]
        for case in summary.cases:
            reference = read_label(done.root / TEST_SET["labels"] / f"{case.case}.nii.gz")[0] == 5
            predicted = read_label(folder / f"{case.case}.nii.gz")[0] == 1
            both = int((reference & predicted).sum())
            assert case.labels["tumour"].tp == both
            expected = 2 * both / int(reference.sum() + predicted.sum())
            assert case.value("tumour", "Dice") == pytest.approx(expected)


def test_the_table_has_every_score_of_every_model(done: Workspace) -> None:
    rows = rows_of(STUDY, done)
    sets = [(row["plan"], row["fold"], row["set"], row["case"], row["class"]) for row in rows]
    assert len(set(sets)) == len(sets) == 2 * (4 + 2 * 2)
    for run in runs_of(STUDY, done):
        for name in ("validation", "held_out/elsewhere"):
            summary = Summary.load(run.folder(done) / name / "summary.json")
            for case in summary.cases:
                key = (run.plan, str(run.fold), Path(name).name, case.case, "tumour")
                row = rows[sets.index(key)]
                assert float(row["Dice"]) == case.value("tumour", "Dice")
                assert int(row["TP"]) == case.labels["tumour"].tp
                assert float(row["reference_ml"]) == case.volume_ml["tumour"].reference
    about = read_json(done.study(STUDY.name) / "study.json")
    assert about["finished"] is True
    assert [(run["variant"], run["k"], run["fold"], run["state"]) for run in about["runs"]] == [
        (name, 2, fold, "done") for name in ("flip", "plain") for fold in (0, 1)
    ]
    assert all((done.root / run["folder"] / "log.jsonl").is_file() for run in about["runs"])


def test_every_case_of_both_sets_is_drawn_once(done: Workspace) -> None:
    drawing = study(
        "drawing",
        plans=[{"name": "plain", "overrides": {"augmentation": []}}],
        held_out=[TEST_SET],
        report={"figure_6": "examples", "appendix": "pictures"},
    )
    gather(drawing, done)
    folder = done.study(drawing.name)
    paths = write_elements(read_scores(folder), 1)
    appendix = folder / "appendix"
    assert paths == [
        *(folder / "figures" / f"figure_6.{form}" for form in ("svg", "pdf", "png")),
        *(appendix / name for name in ("validation", "elsewhere")),
    ]
    before = times(appendix)
    assert len(before) == 4 + 2
    assert {path.stem for path in before if "elsewhere" in path.parts} == {"x", "y"}
    (run, *_) = runs_of(drawing, done)
    os.utime(run.folder(done) / "held_out" / "elsewhere" / "y.nii.gz")
    write_elements(read_scores(folder), 1)
    after = times(appendix)
    changed = {path.relative_to(appendix) for path in after if after[path] != before[path]}
    assert changed == {Path("elsewhere") / "overlays" / "y.png"}
    page = write_index(read_scores(folder))
    assert page.read_text(encoding="utf-8").count("data:image/webp") == 4 + 2


def test_plans_that_preprocess_alike_share_their_cases(done: Workspace) -> None:
    folders = [done.preprocessed(TASK, name) / "cases" for name in ("flip-k2", "plain-k2")]
    images = [sorted(folder.glob("*/image.b2nd")) for folder in folders]
    assert len(images[0]) == len(images[1]) == 4
    assert all(os.path.samefile(*pair) for pair in zip(*images, strict=True))


def test_nothing_is_repeated_in_any_study(done: Workspace) -> None:
    before = times(done.root / "models")
    other = study("other", plans=[{"name": "flip"}])
    assert run_studies([STUDY, other], done, jobs=2, processes=2, device="cpu") == {}
    assert times(done.root / "models") == before
    assert len(rows_of(other, done)) == 4
    assert read_json(done.study(other.name) / "study.json")["finished"] is True


def test_only_what_is_missing_is_done(done: Workspace, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "copy")
    shutil.copytree(done.root, workspace.root)
    run = runs_of(STUDY, workspace)[2]
    folder = run.folder(workspace)
    (folder / "held_out" / "elsewhere" / "summary.json").unlink()
    (folder / "held_out" / "elsewhere" / "y.nii.gz").unlink()
    statuses = [status_of(each, workspace) for each in runs_of(STUDY, workspace)]
    assert in_short(statuses) == "4 runs: 3 done, 1 stopped"
    before = times(workspace.root / "models")
    assert run_studies([STUDY], workspace, jobs=1, processes=1, device="cpu") == {}
    changed = {
        path for path, time in times(workspace.root / "models").items() if before.get(path) != time
    }
    inside = {str(path.relative_to(folder)) for path in changed}
    assert {"run.json", "held_out/elsewhere/summary.json", "held_out/elsewhere/y.nii.gz"} <= inside
    assert "held_out/elsewhere/x.nii.gz" not in inside
    assert not [name for name in inside if "safetensors" in name]


def test_a_failed_run_stops_no_other(
    done: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(tmp_path / "copy")
    shutil.copytree(done.root, workspace.root)
    runs = runs_of(STUDY, workspace)
    for run in (runs[0], runs[3]):
        (run.folder(workspace) / "validation" / "summary.json").unlink()
    weights = runs[0].folder(workspace) / "latest.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    failed = run_studies([STUDY], workspace, jobs=1, processes=1, device="cpu")
    assert list(failed) == [runs[0]]
    log = failed[runs[0]].read_text(encoding="utf-8")
    assert "error: " in log
    assert str(weights) in log
    assert is_finished(runs[3], workspace)
    status = status_of(runs[0], workspace)
    assert status.state == "failed"
    assert str(weights) in status.note
    assert table([status]).row_count == 1
    assert "flip-k2 fold 0: failed: " in capsys.readouterr().err


def test_another_plan_of_the_name_is_refused(done: Workspace) -> None:
    changed = study(plans=[{"name": "flip"}], overrides=OVERRIDES | {"augmentation": []})
    with pytest.raises(PlanError, match=r"flip-k2 differs from .* tiny in augmentation;"):
        prepare_plans([changed], done, 1, "cpu")
    prepare_plans([STUDY], done, 1, "cpu")  # its own plan is known again


def test_unknown_classes_and_folds(done: Workspace) -> None:
    unknown = study(plans=[{"name": "flip"}], held_out=[TEST_SET | {"classes": {"lung": [1]}}])
    with pytest.raises(PlanError, match=r"held_out elsewhere .*'lung'"):
        prepare_plans([unknown], done, 1, "cpu")
    with pytest.raises(PlanError, match=r"flip-k2 .*fold 2.* 0 to 1"):
        runs_of(study(plans=[{"name": "flip"}], folds=[2]), done)


def test_a_missing_test_set(done: Workspace, tmp_path: Path) -> None:
    missing = study(plans=[{"name": "flip"}], held_out=[TEST_SET | {"images": "nowhere"}])
    run = runs_of(missing, done)[0]
    with pytest.raises(AutosegError, match=r"nowhere.* held-out test set"):
        score_held_out(run, missing.held_out[0], done, "cpu", 1)


def test_a_splits_file_of_the_task_overrides_k(tmp_path: Path) -> None:
    workspace = write_task(tmp_path)
    names = [f"case_{number}" for number in range(4)]
    splits = [{"train": [n for n in names if n != name], "val": [name]} for name in names]
    (workspace.raw(TASK) / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(PlanError, match=r"splits\.json has 4 folds, study tiny needs 2"):
        prepare_plans([study()], workspace, 1, "cpu")
