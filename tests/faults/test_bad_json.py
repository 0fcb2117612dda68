"""Every JSON file that autoseg reads, damaged: it is read, or one line says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json, write_json
from autoseg.dataset.splits import read_splits
from autoseg.dataset.task import find_task
from autoseg.evaluation.labels import read_declarations
from autoseg.evaluation.report.facts import read_predictions, version_rows
from autoseg.evaluation.scores import Summary
from autoseg.experiments.results import read_scores
from autoseg.experiments.runs import runs_of
from autoseg.experiments.study import read_study
from autoseg.export.model_zip import read_statements
from autoseg.fingerprint import Fingerprint
from autoseg.prediction.postprocessing import Postprocessing
from autoseg.workflow.workspace import Workspace
from tests.dataset.making import MSD, V2
from tests.experiments.study_folders import ablation
from tests.export.making import TASK, trained_workspace
from tests.faults.bad_json import MOST_PLACES, damaged_json
from tests.making import tiny_plan

STUDY = {
    "title": "all keys",
    "task": TASK,
    "plans": [{"name": "a", "overrides": {"training": {"epochs": 1}}, "seeds": [1], "k": [2]}],
    "k": [2, 3],
    "folds": [0],
    "held_out": [{"name": "b", "images": "i", "labels": "l", "classes": {"organ": [1]}}],
    "slurm": {"time": "12h", "gpus": 1, "options": {"account": "x"}},
}
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Kind:
    """A file: what a whole one holds, and how it is read."""

    path: Path
    read: Read
    places: int = MOST_PLACES

    @property
    def whole(self) -> Any:
        return json.loads(self.path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    root = tmp_path_factory.mktemp("workspace")
    workspace = trained_workspace(root)
    raw, planned = workspace.raw(TASK), workspace.preprocessed(TASK, "default")
    validation = workspace.models(TASK, "default") / "fold_0" / "validation"
    cases = [f"case_{number}" for number in range(4)]
    names = [f"{case}.nii.gz" for case in cases]
    listed = [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in names]
    declared = {
        "msd": MSD | {"training": listed, "numTraining": 4, "licence": "x"},
        "v2": V2 | {"groups": {"case_0": "a", "case_1": "a"}, "description": "b"},
        "regions": V2
        | {"labels": {"background": 0, "a": [1, 2], "b": 2, "ignore": 3}}
        | {"regions_class_order": [1, 2], "groups": {"pattern": "case_."}},
    }
    plan = tiny_plan()
    labels = {"labels": {"a": [1], "b": [2]}, "evaluation": plan.evaluation.model_dump(mode="json")}
    predictions = {"cases": {"a": {"seconds": {"reading": 1.0}}}, "runs": {"r": {"started": "x"}}}
    postprocessing = {"format_version": 1, "plan_id": "x"} | {
        "steps": [{"name": "a", "keep_largest": [1]}]
    }
    study = ablation(root)
    files = {
        "labels": root / "p" / "labels.json",
        "predictions": root / "p" / "predictions.json",
        "postprocessing": root / "postprocessing.json",
        "card": root / "card.json",
        "study": root / "study.json5",
    }
    for name, values in {
        "labels": labels,
        "predictions": predictions,
        "postprocessing": postprocessing,
        "card": {"licence": "CC0"},
        "study": STUDY,
    }.items():
        write_json(files[name], values)
    for name, fields in declared.items():
        write_json(root / name / "dataset.json", fields)
        for folder in ("imagesTr", "labelsTr"):
            (root / name / folder).symlink_to(raw / folder)
    return {
        **{name: Kind(root / name / "dataset.json", _task) for name in declared},
        "splits": Kind(planned / "splits.json", lambda path: read_splits(path, cases)),
        "fingerprint": Kind(planned / "fingerprint.json", _fingerprint),
        "summary": Kind(validation / "summary.json", _summary),
        "labels": Kind(files["labels"], _labels),
        "predictions": Kind(files["predictions"], _predictions),
        "postprocessing": Kind(files["postprocessing"], _postprocessing),
        "card": Kind(files["card"], lambda path: read_statements(path, {})),
        "results": Kind(study / "study.json", lambda path: read_scores(path.parent)),
        "study": Kind(files["study"], _study, 8),
    }


def _study(path: Path) -> None:
    """Whatever its numbers are, the list of its runs stays within reason."""
    assert len(runs_of(read_study(str(path)), Workspace(path.parent))) < 10_000


def _task(path: Path) -> None:
    find_task(path.parent)


def _fingerprint(path: Path) -> None:
    """What is read can be used."""
    found = Fingerprint.load(path)
    json.dumps(found.to_json(), allow_nan=False)
    assert found.presence or not found.cases


def _summary(path: Path) -> None:
    found = Summary.load(path)
    json.dumps(found.to_json(), allow_nan=False)


def _labels(path: Path) -> None:
    read_declarations(path.parent / "truth", path.parent)


def _predictions(path: Path) -> None:
    if (found := read_predictions(path.parent)) is not None:
        version_rows([found])


def _postprocessing(path: Path) -> None:
    Postprocessing.from_json(read_json(path), str(path))


NAMES = (
    *("msd", "v2", "regions", "splits", "fingerprint", "summary"),
    *("labels", "predictions", "postprocessing", "card", "results", "study"),
)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files(kinds: dict[str, Kind], name: str) -> None:
    kind = kinds[name]
    whole = kind.path.read_bytes()
    kind.read(kind.path)
    try:
        for damage, content in damaged_json(kind.whole, kind.places):
            kind.path.write_bytes(content)
            try:
                kind.read(kind.path)
            except AutosegError as error:
                message = str(error)
                assert len(message.splitlines()) <= 1, damage
            except Exception as error:
                raise AssertionError(f"{damage}: {error!r}") from error
    finally:
        kind.path.write_bytes(whole)
