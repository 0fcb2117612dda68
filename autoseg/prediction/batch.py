"""Predict many cases into a folder: whole files only, and one bad case does not stop the rest."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from autoseg.common.errors import AutosegError, DataError, RunError
from autoseg.common.files import replacing
from autoseg.common.progress import Progress, progress, say
from autoseg.image.geometry import Geometry
from autoseg.image.image import read_image, read_label
from autoseg.prediction.inputs import Inputs
from autoseg.prediction.native_grid import ENDING as PROBABILITIES
from autoseg.prediction.output import (
    DEFAULT_FORMAT,
    check_format,
    ending,
    volumes,
    write_prediction,
)
from autoseg.prediction.predictor import Ensemble, LabelMap, Predictor, PreparedEach
from autoseg.prediction.record import CaseRecord, Record, Work, file_facts, input_bytes
from autoseg.preprocessing.steps import Prepared

# What became of the cases of a run.


@dataclass(frozen=True)
class Outcome:
    """What became of every case.

    Attributes:
        predicted: name -> its record.
        skipped: names of cases that were there already, or that another run has predicted.
        refused: name -> what is wrong with the scan.
        failed: name -> what went wrong in spite of a good scan, such as a MemoryError.
    """

    predicted: dict[str, CaseRecord] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Is every case there?"""
        return not (self.refused or self.failed)

    @property
    def is_our_fault(self) -> bool:
        """Is no case there, and not because of the scans alone?"""
        return bool(self.failed) and not (self.predicted or self.skipped)

    def raise_failures(self) -> None:
        """Stop if a case is not there.

        Raises:
            Exception: what went wrong in spite of a good scan.
            DataError: names the first scan that was refused and how many more there are.
        """
        for error in self.failed.values():
            raise error
        if self.refused:
            reason = next(iter(self.refused.values()))
            more = f" (and {len(self.refused) - 1} more)" if len(self.refused) > 1 else ""
            raise DataError(f"{reason}{more}")

    def print_tracebacks(self) -> None:
        """Print where each failure in spite of a good scan came from (standard error)."""
        for error in self.failed.values():
            traceback.print_exception(error)

    def counts(self) -> str:
        """One line that says how many became what."""
        done = f"{len(self.predicted)} predicted, {len(self.skipped)} were there already"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{done}, {len(self.refused)} refused{failed}"

    def missing(self) -> Iterator[tuple[str, str, str]]:
        """What became of it, the case and the reason, of each that is not there."""
        yield from (("refused", name, reason) for name, reason in self.refused.items())
        yield from (("failed", name, in_words(error)) for name, error in self.failed.items())


def in_words(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, MemoryError):
        return "memory ran out; close other programs, or use a machine with more"
    if isinstance(error, AutosegError):
        return str(error)
    return f"{' '.join(str(error).split()) or 'no reason given'} ({type(error).__name__})"


def show(outcome: Outcome) -> None:
    """Tell the user: a table on a terminal, plain lines elsewhere (standard error)."""
    missing = list(outcome.missing())
    if not (missing and sys.stderr.isatty()):
        say(outcome.counts())
        for state, name, reason in missing:
            say(f"{state} {name}: {reason}")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=outcome.counts(), title_justify="left")
    for heading in ("", "case", "reason"):
        table.add_column(heading)
    for row in missing:
        table.add_row(*map(Text, row))  # names of cases may have [brackets]
    Console(stderr=True).print(table)


# Three stages of work on many items, at the same time and in bounded memory.

Item = TypeVar("Item")
Made = TypeVar("Made")
Computed = TypeVar("Computed")
Result = TypeVar("Result")


def overlap(
    items: Iterator[Item],
    prepare: Callable[[Item], Made],
    compute: Callable[[Made], Computed],
    finish: Callable[[Computed], Result],
) -> Iterator[Result]:
    """`finish(compute(prepare(item)))` of each item, in their order.

    While one item is computed in the calling thread, the next one is prepared in a second thread
    and the last one is finished in a third. An item is taken from `items` (in the second thread)
    only when the one before it goes on to be computed: at most three are alive at once, one a
    stage. What a stage raises ends the iteration once the other two stages have ended.
    """
    # Threads are enough, as readers, compressors, numpy and torch let go of the interpreter while
    # they work; processes would have to send whole volumes to each other.
    preparing, finishing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def prepare_next() -> list[Made]:
        return [prepare(item) for item in islice(items, 1)]

    try:
        coming = preparing.submit(prepare_next)
        last: Future[Result] | None = None
        while found := coming.result():
            coming = preparing.submit(prepare_next)
            computed = compute(found.pop())
            if last is not None:
                yield last.result()
            last = finishing.submit(finish, computed)
            del computed
        if last is not None:
            yield last.result()
    finally:
        for stage in (preparing, finishing):
            stage.shutdown(cancel_futures=True)


Value = TypeVar("Value")


def output_path(folder: Path, case: str, format: str = DEFAULT_FORMAT) -> Path:
    """Where a case's prediction goes."""
    return folder / f"{case}{ending(format)}"


def predict_cases(
    predictor: Predictor | Ensemble,
    inputs: Inputs,
    out: Path,
    overwrite: bool,
    previous: Mapping[str, Path] | None = None,
    format: str = DEFAULT_FORMAT,
    refused: Mapping[str, str] | None = None,
    save_probabilities: bool = False,
) -> Outcome:
    """Predict every case that is not there yet; write `predictions.json` beside the label maps.

    The next case is read and the last one written while one is in the network: at most three are
    in memory. Several runs on one folder share its cases.

    Args:
        predictor: a loaded model.
        inputs: case -> its files.
        out: folder for the label maps.
        overwrite: predict what is there already, too.
        previous: for a cascade, case -> the label map of its previous stage, where it is there.
        format: of the label maps, see `output.FORMATS`.
        refused: cases that cannot be predicted -> why; they are told with the others.
        save_probabilities: write them beside the label maps, see `prediction.probabilities`.

    Raises:
        AutosegError: an output would replace a scan, the cases that are there already were
            predicted by another model, or nothing can be written.
    """
    check_format(format, inputs)
    more = (PROBABILITIES,) if save_probabilities else ()
    outputs = {
        name: (output_path(out, name, format).name, *(name + ending for ending in more))
        for name in inputs
    }
    _protect_scans(inputs, {name: out / files[0] for name, files in outputs.items()})
    record = Record(out, predictor, {"format": format}, known=previous is not None)
    outcome = Outcome(refused=dict(refused or {}))
    with (
        closing(Work(out, inputs, outputs, record, overwrite)) as work,
        progress("predicting", len(work.wanted)) as bar,
    ):
        stages = _Stages(predictor, work, previous, format, bar)
        for names in work.rounds():
            for done in overlap(names, stages.prepare, stages.compute, stages.finish):
                _sort_in(done, outcome, bar)
        skipped = {*work.skipped, *work.elsewhere}
    kept = tuple(name for name in inputs if name in skipped)
    return Outcome(outcome.predicted, kept, outcome.refused, outcome.failed)


def _protect_scans(inputs: Inputs, outputs: Mapping[str, Path]) -> None:
    for name, path in outputs.items():
        # Not Path.resolve, which raises where links lead in a circle.
        if os.path.realpath(path) in [os.path.realpath(file) for file in inputs[name]]:
            raise AutosegError(f"{path}: the prediction would replace its scan; choose another -o")


@dataclass(frozen=True)
class _Ready:
    """A case that can go through the network."""

    name: str
    prepared: Prepared | PreparedEach
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Segmented:
    """A case that can be written."""

    name: str
    label: LabelMap
    geometry: Geometry
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Predicted:
    name: str
    record: CaseRecord


@dataclass(frozen=True)
class _Failed:
    name: str
    error: Exception


class _Stages:
    """What happens to a case, one stage after the other; one that fails goes past the rest."""

    def __init__(
        self,
        predictor: Predictor | Ensemble,
        work: Work,
        previous: Mapping[str, Path] | None,
        format: str,
        bar: Progress,
    ) -> None:
        self.predictor, self.work, self.previous = predictor, work, previous
        self.format, self.bar = format, bar

    def prepare(self, name: str) -> _Ready | _Failed:
        return _caught(name, lambda: self._read(name))

    def compute(self, case: _Ready | _Failed) -> _Segmented | _Failed:
        if isinstance(case, _Failed):
            return case
        return _caught(case.name, lambda: self._segment(case))

    def finish(self, case: _Segmented | _Failed) -> _Predicted | _Failed:
        try:
            if isinstance(case, _Failed):
                return case
            return _caught(case.name, lambda: self._write(case))
        finally:
            self.work.release(case.name)

    def _read(self, name: str) -> _Ready:
        files = self.work.inputs[name]
        watch = _Watch()
        image = read_image(files, own_type=True)
        before = read_label(self.previous[name])[0] if self.previous else None
        watch.lap("reading")
        try:
            prepared = self.predictor.prepare(image, before)
        except DataError as error:
            raise DataError(f"{files[0]}: {error}") from error
        watch.lap("preparing")
        return _Ready(name, prepared, watch.seconds)

    def _segment(self, case: _Ready) -> _Segmented:
        watch = _Watch()
        _, *more = self.work.outputs[case.name]
        save = self.work.folder / more[0] if more else None
        label = self.predictor.segment(
            case.prepared,  # type: ignore[arg-type]
            save,
            lambda share: self.bar.tell(f"{case.name} {share:.0%}"),
        )
        watch.lap("network")
        return _Segmented(case.name, label, case.prepared.geometry, case.seconds | watch.seconds)

    def _write(self, case: _Segmented) -> _Predicted:
        files, plan = self.work.inputs[case.name], self.predictor.plan
        path = self.work.folder / self.work.outputs[case.name][0]
        watch = _Watch()
        found = volumes(case.label, case.geometry, plan)
        with replacing(path) as whole:
            with _named(path, whole):
                write_prediction(whole, case.label, case.geometry, files, plan, self.format)
            facts = file_facts(whole)
            watch.lap("writing")
            # First the old file goes, then the record is written, then the new file appears: so a
            # run that is killed in between leaves no file that another run would take for done.
            path.unlink(missing_ok=True)
            record = self.work.record.add(
                case.name,
                {
                    "inputs": [str(file) for file in files],
                    "input_bytes": input_bytes(files),
                    "files": {path.name: facts, **self._facts_of_more(case.name)},
                    "seconds": case.seconds | watch.seconds,
                    **found,
                },
            )
        return _Predicted(case.name, record)

    def _facts_of_more(self, name: str) -> dict[str, Any]:
        """Of the files that are written before the label map."""
        _, *more = self.work.outputs[name]
        return {file: file_facts(self.work.folder / file) for file in more}


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Let errors of writing name the file that the user knows, in one line."""
    try:
        yield
    except DataError:
        raise
    except AutosegError as error:
        raise AutosegError(str(error).replace(temporary.name, path.name)) from error
    except RuntimeError as error:  # of SimpleITK, on a full disk
        reason = str(error).strip().splitlines()[-1]
        raise AutosegError(
            f"cannot write {path}: {reason}; choose a folder that is writable and has free space"
        ) from error


class _Watch:
    """Measures the parts of a stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = round(now - self.started, 3)
        self.started = now


def _caught(name: str, stage: Callable[[], Value]) -> Value | _Failed:
    """Run a stage; what concerns this case alone becomes a failure.

    Other errors of the user's (the folder cannot be written, a model is not there) and signals
    would meet every case: they end the run.
    """
    try:
        return stage()
    except DataError as error:
        return _Failed(name, error)
    except (AutosegError, RunError):
        raise
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # they hold the volumes of the case
        return _Failed(name, error)


def _sort_in(done: _Predicted | _Failed, outcome: Outcome, bar: Progress) -> None:
    match done:
        case _Predicted(name, record):
            outcome.predicted[name] = record
        case _Failed(name, DataError() as error):
            outcome.refused[name] = str(error)
            say(f"skipped {name}: {error}")
        case _Failed(name, error):
            outcome.failed[name] = error
            say(f"skipped {name}: {error!r}")
    bar.advance(done.name)
