"""`predictions.json` and `labels.json`: what a folder of predictions contains and how it was made.

Both are beside the label maps. `labels.json` holds the names of the labels and how they are scored:
all that an evaluation needs. `predictions.json` holds, for each case, its files with their SHA-256,
the seconds of each stage, volumes and shares; and for each run its versions and device. Runs that
share a folder add to the record one after the other, and each predicts the cases that it claims.
"""

import gzip
import hashlib
import json
import platform
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import SimpleITK as sitk
import torch

from autoseg import __version__
from autoseg.common import files as common
from autoseg.common.errors import AutosegError, DataError, InUse
from autoseg.common.locks import locked
from autoseg.common.progress import say
from autoseg.image.dicom_series import Source
from autoseg.image.formats import ending_of
from autoseg.image.image import files_of, read_label
from autoseg.networks.devices import describe
from autoseg.prediction.inputs import Inputs
from autoseg.prediction.model import Model
from autoseg.prediction.predictor import Ensemble, Predictor
from autoseg.prediction.studies import TEXT

RECORD, LABELS, LOCK = "predictions.json", "labels.json", ".predictions.lock"
SMALL_BYTES = 100_000  # a record that is written anew for each case
POLL_SECONDS = 0.2

CaseRecord = dict[str, Any]
Outputs = Mapping[str, Sequence[str]]
FileFacts = dict[str, Any]  # file name -> its size and SHA-256


class PredictionRecord:
    """The record of one folder, to which this run and others add cases.

    A large record is not written anew for each case: the latest cases are appended to a journal. It
    is merged into the record when it is half as large, at the end, and when the next run begins.

    Predictions of another model that are to be overwritten are listed as `outdated` until they are:
    so if a run is stopped, the next one can still tell which model they are of.

    Args:
        folder: of the label maps.
        predictor: what predicts them.
        format: of the label maps.
        known: whether the label map of a cascade's previous stage is given with each scan.
    """

    def __init__(
        self, folder: Path, predictor: Predictor, format: str, known: bool = False
    ) -> None:
        plan = predictor.plan
        self.path = folder / RECORD
        self.origin = origin(predictor, known) | {"format": format}
        self.names = {"task": plan.task, "plan": plan.name}
        self.labels = plan.model_dump(mode="json", include={"labels", "ignore_label", "evaluation"})
        self.run_id, self.run = uuid4().hex[:8], run_facts(predictor)
        self.outdated: FileFacts = {}
        self.journal = folder / ".predictions.jsonl"  # the latest cases, one in a line
        self._last: tuple[Any, dict[str, Any]] = None, {}  # what was read, and from which files

    def begin(self, overwrite: bool) -> dict[str, CaseRecord]:
        """Write the labels and a record that this run can add to; return the cases in it.

        Raises:
            AutosegError: the existing predictions have another origin and `overwrite` is false.
        """
        with self._locked():
            common.remove_leftovers(self.path.parent, (RECORD, LABELS))
            found = self._read()
            cases, outdated = found.get("cases", {}), found.get("outdated", {})
            if differing := self._differing(found):
                there = (outdated | _files_of(cases)).items()
                outdated = {n: of for n, of in there if self.path.with_name(n).exists()}
                if outdated and not overwrite:
                    raise self._error("other origin", differing)
                cases = {}
            self.outdated = outdated
            common.write_json(self.path.with_name(LABELS), self.labels)
            self._write(found | {"cases": cases, "outdated": outdated})
            return dict(cases)

    def read(self) -> dict[str, CaseRecord]:
        """The cases that are recorded now, by this run and by others."""
        with self._locked():
            return dict(self._read().get("cases", {}))

    def taken(self, uids: Mapping[str, str]) -> dict[str, str]:
        """The cases whose name is that of another DICOM series in the record -> what to do."""
        return {
            name: TEXT("other series", path=self.path, name=name, there=there)
            for name, case in self.read().items()
            if (there := case.get("series_uid")) and uids.get(name, there) != there
        }

    def add(self, name: str, case: CaseRecord) -> CaseRecord:
        """Record a case as predicted by this run; return its record.

        Raises:
            AutosegError: another run overwrites the folder with predictions of another origin.
        """
        with self._locked():
            found = self._read()
            if found and (differing := self._differing(found)):
                raise self._error("other run", differing)
            added = case | {"run": self.run_id}
            part = {"cases": {name: added}, "runs": {self.run_id: self.run}}
            found = _merged(found, part)
            (size, _), (waiting, _) = self._stamps()
            if size < SMALL_BYTES or 2 * waiting > size:
                self._write(found)
            else:
                with self.journal.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(part) + "\n")
                self._last = self._stamps(), found
            return added

    def close(self) -> None:
        """Merge the journal into the record."""
        with self._locked():
            if self.journal.exists() and (found := self._read()) and not self._differing(found):
                self._write(found)

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.path.with_name(LOCK), RECORD, wait=True)

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        if (stamps := self._stamps()) == self._last[0]:
            return self._last[1]
        with suppress(AutosegError):
            found = common.read_json(self.path)
            if _is_record(found):
                # There may be no journal, and its last line may be cut off.
                with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                    for line in self.journal.read_text("utf-8").splitlines():
                        found = _merged(found, json.loads(line))
                self._last = stamps, dict(found)
                return self._last[1]
        say(f"{self.path} is damaged; writing a new one")
        return {}

    def _write(self, found: Mapping[str, Any]) -> None:
        cases, outdated = found["cases"], found.get("outdated")
        used = {case.get("run") for case in cases.values()}
        runs = {name: run for name, run in found.get("runs", {}).items() if name in used}
        record = {**self.names, **self.origin, "runs": runs, "cases": dict(sorted(cases.items()))}
        common.write_json(self.path, record | ({"outdated": outdated} if outdated else {}))
        self.journal.unlink(missing_ok=True)

    def _stamps(self) -> list[tuple[int, int]]:
        """Size and time of the record and of its journal."""
        found = [p.stat() if p.exists() else None for p in (self.path, self.journal)]
        return [(of.st_size, of.st_mtime_ns) if of else (0, 0) for of in found]

    def _error(self, what: str, differing: Sequence[str]) -> AutosegError:
        return AutosegError(TEXT(what, path=self.path, what=" and ".join(differing)))

    def _differing(self, found: Mapping[str, Any]) -> list[str]:
        known = set(self.origin) | (set(found) - {"task", "plan", "runs", "cases", "outdated"})
        return [key for key in sorted(known) if found.get(key) != self.origin.get(key)]


def _is_record(found: Any) -> bool:
    """Whether the content of a file is laid out like a record."""
    if not isinstance(found, dict) or "cases" not in found:
        return False
    parts = [found["cases"], found.get("runs", {}), found.get("outdated", {})]
    cases = found["cases"].values() if isinstance(found["cases"], dict) else ()
    parts += [*cases, *(case.get("files", {}) for case in cases if isinstance(case, dict))]
    return all(isinstance(part, dict) for part in parts)


def _merged(found: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """A record with further cases and runs; the files of these are not outdated any more."""
    new, old = _files_of(part["cases"]), found.get("outdated", {})
    added = {key: found.get(key, {}) | part[key] for key in ("cases", "runs")}
    return {**found, **added, "outdated": {f: facts for f, facts in old.items() if f not in new}}


def _files_of(cases: Mapping[str, CaseRecord]) -> FileFacts:
    return {file: facts for case in cases.values() for file, facts in case.get("files", {}).items()}


def origin(predictor: Predictor, known: bool = False) -> dict[str, Any]:
    """What decides a prediction besides the scan (and the previous stage, if that is `known`)."""
    if isinstance(predictor, Ensemble):  # without postprocessing
        return {"ensemble": [_origin_of_networks(member, False) for member in predictor.members]}
    found = _origin_of_networks(predictor, known)
    if predictor.postprocessing is not None and predictor.postprocessing.steps:
        found["postprocessing"] = [step.name for step in predictor.postprocessing.steps]
    return found


def _origin_of_networks(predictor: Predictor, known: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model_id": model_id(predictor.model),
        "plan_id": predictor.model.plan.id,
        "folds": list(predictor.model.folds),
        "mirrored": len(predictor.flips) > 1,
    }
    if predictor.plan.orientation is not None:
        found["orientation"] = predictor.plan.orientation
    if not known and predictor.previous is not None:
        found["previous_stage"] = _origin_of_networks(predictor.previous, False)
    return found


def model_id(model: Model) -> str:
    """A hash of all weights: 12 hexadecimal digits, like the id of a plan."""
    digest = hashlib.blake2b(digest_size=6)
    for network in model.networks:
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def run_facts(predictor: Predictor) -> dict[str, Any]:
    """Start, device and versions of a run."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": str(predictor.device),
        "hardware": describe(predictor.device),
        "autoseg": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "SimpleITK": sitk.Version.VersionString(),
        "backend": predictor.backend_name,
        "not_checked": predictor.not_checked,
    }


def file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, to recognise it later."""
    return {"bytes": path.stat().st_size, "sha256": common.sha256_of(path)}


def input_bytes(files: Sequence[Source]) -> int:
    """The size of a scan's files, to notice another scan of the same name."""
    return sum(file.stat().st_size for path in files for file in files_of(path) if file.is_file())


class CaseQueue:
    """The cases that a run has to predict, shared with other runs on the same folder.

    Each case is claimed before it is predicted, so only one run predicts it. Claims are locks: that
    of a dead process is taken over.

    Args:
        inputs: case -> the files of its scan.
        outputs: case -> the names of its files; the first is its label map.
        record: of the folder of the predictions.
        overwrite: also predict cases that are predicted already.

    Attributes:
        wanted: cases to predict.
        skipped: cases that were predicted before, or by other runs meanwhile.
    """

    def __init__(
        self, inputs: Inputs, outputs: Outputs, record: PredictionRecord, overwrite: bool
    ) -> None:
        self.inputs, self.outputs, self.record = inputs, outputs, record
        self.folder = record.path.parent
        self.known = record.begin(overwrite)
        self.claims: dict[str, ExitStack] = {}
        self._remove_leftovers()
        self.wanted = [name for name in inputs if overwrite or self._is_wanted(name)]
        self.skipped = sorted(inputs.keys() - set(self.wanted))

    def close(self) -> None:
        """Release the claims on cases that are not finished."""
        for name in list(self.claims):
            self.release(name)
        self.record.close()

    def rounds(self) -> Iterator[Iterator[str]]:
        """Rounds of cases to predict, until all are predicted here or by other runs.

        A case that another run has claimed is tried again: if that run fails, it is predicted here.
        """
        left, is_waiting = list(self.wanted), False
        while left:
            in_use: dict[str, InUse] = {}
            yield self._claimed(left, in_use)
            if list(in_use) == left:
                if not is_waiting:
                    cases = ", ".join(left)
                    say(f"waiting for another run, which predicts {cases}: {in_use[left[0]]}")
                is_waiting = True
                time.sleep(POLL_SECONDS)
            left = list(in_use)

    def release(self, name: str) -> None:
        """Release the claim on a case."""
        self.claims.pop(name).close()

    def _claimed(self, names: Sequence[str], in_use: dict[str, InUse]) -> Iterator[str]:
        """Claim case after case; those that other runs have claimed are added to `in_use`."""
        for name in names:
            claim = ExitStack()
            try:
                claim.enter_context(self._claim(name))
            except InUse as error:
                in_use[name] = error
                continue
            self.claims[name] = claim
            now = self.record.read().get(name)
            if now and now != self.known.get(name) and self._why_not(name, now) is None:
                self.release(name)
                self.skipped.append(name)
            else:
                yield name

    def _claim(self, name: str) -> AbstractContextManager[None]:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
        return locked(self.folder / f".claim-{digest}", f"case {name}")

    def _is_wanted(self, name: str) -> bool:
        """Whether a case has to be predicted; prints why, if there is a label map of it."""
        label = self.folder / self.outputs[name][0]
        record = self.known.get(name, {})
        why = self._why_not(name, record)
        if why and label.exists():  # another run may have predicted it just now
            record = self.record.read().get(name, {})
            why = self._why_not(name, record)
        if why is None:
            return False
        known = (record.get("files", {}).get(label.name), self.record.outdated.get(label.name))
        if label.exists() and file_facts(label) not in known and _is_readable(label):
            say(f"kept {label}: it was changed or is not of autoseg; --overwrite replaces it")
            return False
        if record or label.exists():
            say(f"predicting {name} again: {why}")
        return True

    def _why_not(self, name: str, record: CaseRecord) -> str | None:
        """Why a case does not count as predicted; None if it does."""
        recorded = record.get("files", {})
        for file in self.outputs[name]:
            path = self.folder / file
            if not path.exists():
                return f"{file} is missing"
            if recorded.get(file) != (facts := file_facts(path)):
                outdated = facts == self.record.outdated.get(file)
                return f"{file} is {'of another model' if outdated else 'damaged'}"
        if record.get("input_bytes") != input_bytes(self.inputs[name]):
            return "its scan has changed"
        return None

    def _remove_leftovers(self) -> None:
        """Remove the unfinished files that a killed run has left of these cases."""
        leftovers = [path.name for path in common.unfinished_in(self.folder)]
        for name, files in self.outputs.items() if leftovers else ():
            if any(common.is_temporary(left, file) for left in leftovers for file in files):
                with suppress(InUse), self._claim(name):
                    common.remove_leftovers(self.folder, files)


def _is_readable(path: Path) -> bool:
    """Whether a label map can be read to its end; false for formats that cannot be checked."""
    if not ending_of(path):
        return False
    with suppress(DataError, OSError, EOFError, zlib.error):
        if path.name.endswith(".gz"):
            with gzip.open(path) as file:  # compares the checksum, which image readers may not do
                while file.read(1 << 20):
                    pass
        read_label(path)
        return True
    return False
