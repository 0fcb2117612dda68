"""`predictions.json` and `labels.json`: what a folder of predictions holds, and who made it how.

Both lie beside the label maps. `labels.json` has the names of the labels and how they are scored:
all that an evaluation needs. `predictions.json` has, for each case, its files with their SHA-256,
seconds of each stage, volumes and shares; and for each run that took part its versions and its
device. Runs that share the folder add to the record one after the other.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from autoseg import __version__
from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json, remove_leftovers, sha256_of, write_json
from autoseg.common.locks import locked
from autoseg.common.progress import say
from autoseg.networks.devices import describe
from autoseg.prediction.ensemble import Ensemble
from autoseg.prediction.model import Model
from autoseg.prediction.predictor import Predictor

RECORD, LABELS, LOCK = "predictions.json", "labels.json", ".predictions.lock"
CaseRecord = dict[str, Any]
FileFacts = dict[str, Any]  # file name -> its size and SHA-256


class Record:
    """The record of one folder, to which this run and others add cases.

    Predictions of another model that are to be overwritten are recorded as `outdated` until they
    are: a run that is stopped before leaves no doubt about whose they are.

    Args:
        folder: where the label maps lie.
        predictor: what makes them.
        options: what else decides a prediction, besides the scan: name -> value.
        known: the previous stage of a cascade is given with each scan, not predicted.
    """

    def __init__(
        self,
        folder: Path,
        predictor: Predictor | Ensemble,
        options: Mapping[str, Any],
        known: bool = False,
    ) -> None:
        plan = predictor.plan
        self.path = folder / RECORD
        self.origin = origin(predictor, known) | dict(options)
        self.head = {"task": plan.task, "plan": plan.name, **self.origin}
        self.labels = {
            "labels": {name: list(values) for name, values in plan.labels.items()},
            "ignore_label": plan.ignore_label,
            "evaluation": plan.evaluation.model_dump(mode="json"),
        }
        self.run_id, self.run = uuid4().hex[:8], run_facts(predictor)
        self.outdated: FileFacts = {}

    def begin(self, overwrite: bool) -> dict[str, CaseRecord]:
        """Write the labels and a record that this run can add to; return the cases in it.

        Raises:
            AutosegError: the predictions there were made otherwise, and are not to be overwritten.
        """
        with self._alone():
            remove_leftovers(self.path.parent, (RECORD, LABELS))
            found = self._read()
            cases, outdated = found.get("cases", {}), found.get("outdated", {})
            if differing := self._differing(found):
                outdated = self._still_there(outdated | _files_of(cases))
                if outdated and not overwrite:
                    raise AutosegError(
                        f"{self.path.parent}: the predictions there have another "
                        f"{' and '.join(differing)} than this run (see {RECORD}); "
                        "choose another -o, or --overwrite them"
                    )
                cases = {}
            self.outdated = outdated
            write_json(self.path.with_name(LABELS), self.labels)
            self._write(cases, outdated, found.get("runs", {}))
            return dict(cases)

    def read(self) -> dict[str, CaseRecord]:
        """The cases that are recorded now, by this run and by others."""
        cases: dict[str, CaseRecord] = self._read().get("cases", {})
        return cases

    def add(self, name: str, case: CaseRecord) -> CaseRecord:
        """Record a case as predicted by this run; return its record.

        Raises:
            AutosegError: another run has overwritten the folder with other predictions meanwhile.
        """
        with self._alone():
            found = self._read()
            if found and (differing := self._differing(found)):
                raise AutosegError(
                    f"{self.path.parent}: another run overwrites the predictions there with those "
                    f"of another {' and '.join(differing)}; choose another -o"
                )
            added = case | {"run": self.run_id}
            cases = found.get("cases", {}) | {name: added}
            new = _files_of({name: added})
            outdated = {
                file: facts for file, facts in found.get("outdated", {}).items() if file not in new
            }
            self._write(cases, outdated, found.get("runs", {}) | {self.run_id: self.run})
            return added

    def _alone(self) -> AbstractContextManager[None]:
        return locked(self.path.with_name(LOCK), RECORD, wait=True)

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        try:
            found = read_json(self.path)
            if _is_record(found):
                return dict(found)
        except AutosegError:
            pass
        say(f"{self.path} is damaged; it is written anew")
        return {}

    def _write(
        self, cases: dict[str, CaseRecord], outdated: FileFacts, runs: dict[str, Any]
    ) -> None:
        used = {case.get("run") for case in cases.values()}
        record = {
            **self.head,
            "runs": {name: run for name, run in runs.items() if name in used},
            "cases": dict(sorted(cases.items())),
        }
        write_json(self.path, record | ({"outdated": outdated} if outdated else {}))

    def _differing(self, found: Mapping[str, Any]) -> list[str]:
        known = set(self.origin) | (set(found) - {"task", "plan", "runs", "cases", "outdated"})
        return [key for key in sorted(known) if found.get(key) != self.origin.get(key)]

    def _still_there(self, files: FileFacts) -> FileFacts:
        return {file: facts for file, facts in files.items() if self.path.with_name(file).exists()}


def _is_record(found: Any) -> bool:
    """Whether a file's content is laid out like a record."""
    if not isinstance(found, dict) or "cases" not in found:
        return False
    parts = (found["cases"], found.get("runs", {}), found.get("outdated", {}))
    if not all(isinstance(part, dict) for part in parts):
        return False
    cases = found["cases"].values()
    return all(isinstance(c, dict) and isinstance(c.get("files", {}), dict) for c in cases)


def _files_of(cases: Mapping[str, CaseRecord]) -> FileFacts:
    return {file: facts for case in cases.values() for file, facts in case.get("files", {}).items()}


def origin(predictor: Predictor | Ensemble, known: bool = False) -> dict[str, Any]:
    """What decides a prediction, besides the scan and a previous stage that is known."""
    if isinstance(predictor, Ensemble):  # does no postprocessing
        return {"ensemble": [_origin_of_networks(member, False) for member in predictor.members]}
    found = _origin_of_networks(predictor, known)
    if predictor.postprocessing is not None and predictor.postprocessing.steps:
        found["postprocessing"] = [step.name for step in predictor.postprocessing.steps]
    return found


def _origin_of_networks(predictor: Predictor, known: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model_id": model_id(predictor.model),
        "plan_id": predictor.plan.id,
        "folds": list(predictor.model.folds),
        "mirrored": len(predictor.flips) > 1,
    }
    if not known and predictor.previous is not None:
        found["previous_stage"] = _origin_of_networks(predictor.previous, False)
    return found


def model_id(model: Model) -> str:
    """A hash of all weights, as plans have one: 12 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=6)
    for network in model.networks:
        for name, tensor in sorted(network.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def run_facts(predictor: Predictor | Ensemble) -> dict[str, Any]:
    """With what a run computes."""
    import SimpleITK as sitk

    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": str(predictor.device),
        "hardware": describe(predictor.device),
        "autoseg": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "SimpleITK": sitk.Version.VersionString(),
        "backend": predictor.backend_name,
    }


def file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, by which it is known again."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
