"""Which cases are left to predict, shared with other runs on the same folder."""

from __future__ import annotations

import gzip
import hashlib
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

from autoseg.common.errors import DataError, InUse
from autoseg.common.files import is_temporary, unfinished_in
from autoseg.common.locks import locked
from autoseg.common.progress import say
from autoseg.image.formats import ending_of
from autoseg.image.image import files_of, read_label
from autoseg.prediction.record import CaseRecord, Record, file_facts

POLL_SECONDS = 0.2


class Work:
    """The cases of a run; each is claimed before it is predicted, and done by one run only.

    Claims are locks: one that a dead process has left is taken over.

    Args:
        folder: where the predictions go.
        inputs: case -> the files of its scan.
        outputs: case -> the names of the files that it becomes; the first is its label map.
        record: of the folder.
        overwrite: predict what is there already, too.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Mapping[str, tuple[Path, ...]],
        outputs: Mapping[str, Sequence[str]],
        record: Record,
        overwrite: bool,
    ) -> None:
        self.folder, self.inputs, self.outputs, self.record = folder, inputs, outputs, record
        self.known = record.begin(overwrite)
        self.claims: dict[str, ExitStack] = {}
        self.elsewhere: list[str] = []  # cases that other runs have predicted meanwhile
        self._remove_leftovers()
        self.wanted = [name for name in inputs if overwrite or self._is_wanted(name)]
        self.skipped = [name for name in inputs if name not in self.wanted]

    def close(self) -> None:
        """Give back the claims on cases that were not done."""
        for name in list(self.claims):
            self.release(name)

    def rounds(self) -> Iterator[Iterator[str]]:
        """Rounds of cases to predict, until all are done here or by other runs.

        A case that another run predicts is waited for: if that run fails, it is predicted here.
        """
        left, told = list(self.wanted), False
        while left:
            held: list[str] = []
            yield self._claimed(left, held)
            if held == left:
                if not told:
                    say(f"waiting for another run, which predicts {', '.join(held)}")
                told = True
                time.sleep(POLL_SECONDS)
            left = held

    def release(self, name: str) -> None:
        """This run is done with a case."""
        self.claims.pop(name).close()

    def _claimed(self, names: Sequence[str], held: list[str]) -> Iterator[str]:
        """Claim case after case; those that other runs hold are added to `held`."""
        for name in names:
            claim = ExitStack()
            try:
                claim.enter_context(self._claim(name))
            except InUse:
                held.append(name)
                continue
            self.claims[name] = claim
            if self._done_elsewhere(name):
                self.release(name)
                self.elsewhere.append(name)
            else:
                yield name

    def _claim(self, name: str) -> AbstractContextManager[None]:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
        return locked(self.folder / f".claim-{digest}", f"case {name}")

    def _done_elsewhere(self, name: str) -> bool:
        now = self.record.read().get(name)
        return now is not None and now != self.known.get(name) and self._why_not(name, now) is None

    def _is_wanted(self, name: str) -> bool:
        """Is a case not done yet? Say so where it looks as if it were."""
        label = self.folder / self.outputs[name][0]
        record = self.known.get(name, {})
        why = self._why_not(name, record)
        if why and label.exists():  # perhaps another run has predicted it in this moment
            record = self.record.read().get(name, {})
            why = self._why_not(name, record)
        if why is None:
            return False
        if not self._is_mine(label, record) and _is_whole(label):
            say(f"kept {label}: it is not as autoseg wrote it; --overwrite replaces it")
            return False
        if record or label.exists():
            say(f"predicting {name} again: {why}")
        return True

    def _why_not(self, name: str, record: CaseRecord) -> str | None:
        """Why a case is not done; None if it is."""
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

    def _is_mine(self, path: Path, record: CaseRecord) -> bool:
        if not path.exists():
            return False
        known = (record.get("files", {}).get(path.name), self.record.outdated.get(path.name))
        return file_facts(path) in known

    def _remove_leftovers(self) -> None:
        """Remove the unfinished files that a killed run has left of these cases."""
        leftovers = [path.name for path in unfinished_in(self.folder)]
        for name, files in self.outputs.items() if leftovers else ():
            found = [left for left in leftovers if any(is_temporary(left, of) for of in files)]
            if found:
                with suppress(InUse), self._claim(name):
                    for left in found:
                        (self.folder / left).unlink(missing_ok=True)


def input_bytes(files: Sequence[Path]) -> int:
    """The size of a scan's files, by which another scan of the same name is noticed."""
    return sum(file.stat().st_size for path in files for file in files_of(path) if file.is_file())


def _is_whole(path: Path) -> bool:
    """Can a label map be read to its end? Of other formats a yes would be a guess."""
    if not ending_of(path) or not path.exists():
        return False
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path) as file:  # it compares the checksum, which image readers may not
                while file.read(1 << 20):
                    pass
        read_label(path)
    except (DataError, OSError, EOFError, zlib.error):
        return False
    return True
