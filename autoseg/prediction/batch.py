"""Predict many cases into a folder: complete files only, and a failing case does not stop the rest.

A case is read and preprocessed, segmented, then written. These three stages work at the same time,
each on another case; so at most three cases are in memory.
"""

import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autoseg.common.errors import AutosegError, DataError, RunError
from autoseg.common.figures import pixels_of, save_figure
from autoseg.common.files import check_guards, read_json, replacing
from autoseg.common.parallel import overlap
from autoseg.common.progress import Progress, noted, progress, say, shown
from autoseg.image.dicom import modality_of
from autoseg.image.formats import PREVIEW, UNCERTAINTY
from autoseg.image.geometry import Geometry, orientation_of
from autoseg.image.image import read_image, read_label
from autoseg.image.label_writer import write_label
from autoseg.prediction import output
from autoseg.prediction import record as records
from autoseg.prediction.fit import Differences, differs_from
from autoseg.prediction.inputs import FoundInputs
from autoseg.prediction.predictor import Predictor
from autoseg.prediction.quality import Calibration, assess, bounds_text, evidence_of, in_words
from autoseg.prediction.studies import TEXT

if TYPE_CHECKING:
    from autoseg.prediction.dicom_seg import SegWriter, Source


@dataclass(frozen=True)
class Options:
    """What is predicted and written.

    Attributes:
        format: of the label maps, see `output.FORMATS`.
        overwrite: also predict cases that are predicted already.
        strict: refuse scans that differ from the training scans, instead of warning.
        save_probabilities: write them beside the label maps, see `prediction.output`.
        uncertainty: write the entropy of the mean probabilities beside the label maps.
        quality: assess each prediction, see `prediction.quality`.
        shapes: measure the shapes of the classes also where no calibration compares them, so that
            one can be learned.
        preview: draw each case, see `output.draw_preview`; for DICOM SEG also as a DICOM file.
        report: write a page on the folder, with the previews.
    """

    format: str = output.DEFAULT_FORMAT
    overwrite: bool = False
    strict: bool = False
    save_probabilities: bool = False
    uncertainty: bool = False
    quality: bool = True
    shapes: bool = False
    preview: bool = False
    report: bool = False


@dataclass(frozen=True)
class Outcome:
    """The outcome of every case of a run.

    Attributes:
        predicted: name -> its record.
        skipped: names of cases that were predicted before, or by another run.
        refused: name -> what is wrong with the scan.
        failed: name -> the error that a valid scan has led to, such as a MemoryError.
    """

    predicted: dict[str, records.CaseRecord] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether every case is predicted."""
        return not (self.refused or self.failed)

    @property
    def is_our_fault(self) -> bool:
        """Whether no case is predicted, and not only because of the scans."""
        return bool(self.failed) and not (self.predicted or self.skipped)

    def raise_failures(self) -> None:
        """Raise an error if a case is not predicted.

        Raises:
            Exception: the first error that a valid scan has led to.
            DataError: names the first refused scan and the number of the others.
        """
        for error in self.failed.values():
            raise error
        for reason in self.refused.values():
            more = f" (and {len(self.refused) - 1} more)" if len(self.refused) > 1 else ""
            raise DataError(f"{reason}{more}")

    def missing(self) -> Iterator[tuple[str, str, str]]:
        """Outcome, case and reason of each case that is not predicted."""
        yield from (("refused", name, reason) for name, reason in self.refused.items())
        yield from (("failed", name, _one_line(error)) for name, error in self.failed.items())


def show(outcome: Outcome, debug: bool = False) -> None:
    """Print the outcome (standard error); cases that differ in the same way are one line.

    Args:
        outcome: of a run.
        debug: also print the traceback of each failed case.
    """
    for line in in_words(outcome.predicted):
        say(line)
    named: dict[tuple[str, str], list[str]] = {}
    known = outcome.predicted.items()
    differing = [("differs", n, ", ".join(of["differs"])) for n, of in known if of.get("differs")]
    for state, name, reason in (*differing, *outcome.missing()):
        named.setdefault((state, reason), []).append(name)
    differ = f" ({len(differing)} differ)" if differing else ""
    counts = {state: len(cases) for state, cases in vars(outcome).items()}
    failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
    say(TEXT("outcome", differ=differ, others=failed, **counts))
    for (state, reason), names in named.items():
        say(f"{state} {', '.join(names)}: {reason}")
    for error in outcome.failed.values() if debug else ():
        traceback.print_exception(error)


def _one_line(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or use a machine with more memory"
    if isinstance(error, AutosegError):
        return str(error)
    return f"{' '.join(str(error).split()) or 'no reason given'} ({type(error).__name__})"


def predict_cases(
    predictor: Predictor,
    found: FoundInputs,
    out: Path,
    options: Options = Options(),
    previous: Mapping[str, Path] | None = None,
) -> Outcome:
    """Predict every case that is not predicted yet, shared with other runs on the same folder.

    Args:
        predictor: a model.
        found: the cases; a name that has another SeriesInstanceUID in the record is refused.
        out: folder for the label maps.
        options: what is predicted and written.
        previous: for a cascade, case -> the label map of its previous stage, if it is known.

    Raises:
        AutosegError: an output would replace a scan, or the predictions there are of another model.
    """
    output.check_format(options.format, found.cases)
    if predictor.not_checked:
        say(f"not checked whether scans are like the training scans: {predictor.not_checked}")
    if options.save_probabilities and predictor.temperature != 1:
        say(f"saved probabilities have the learned temperature {predictor.temperature:.3g}")
    writer = None
    if options.format == output.DICOM_SEG:
        from autoseg.prediction.dicom_seg import SegWriter  # pydicom is slow to import

        writer = SegWriter.of(predictor.plan, predictor.qualification)
    draws = options.preview or options.report
    wanted = {
        output.ending(options.format): True,
        output.PROBABILITIES: options.save_probabilities,
        UNCERTAINTY: options.uncertainty,
        PREVIEW: draws,
        output.CAPTURE: draws and writer is not None,
    }
    suffixes = [suffix for suffix, is_wanted in wanted.items() if is_wanted]
    outputs = {name: [name + suffix for suffix in suffixes] for name in found.cases}
    for name, files in found.cases.items():
        path = out / outputs[name][0]
        # Not Path.resolve, which raises for circular links.
        if os.path.realpath(path) in [os.path.realpath(f) for f in files if isinstance(f, Path)]:
            raise AutosegError(f"{path}: the prediction would replace its scan; choose another -o")
    record = records.PredictionRecord(out, predictor, options.format, known=previous is not None)
    # Anonymised patients may share an id.
    taken = {} if options.overwrite else record.taken(found.uids)
    inputs = {name: files for name, files in found.cases.items() if name not in taken}
    outcome = Outcome(refused=found.refused | taken)
    queue = records.CaseQueue(inputs, outputs, record, options.overwrite)
    with closing(queue), progress("predicting", len(queue.wanted)) as bar:
        stages = _Stages(predictor, queue, previous, writer, options, bar, found.uids)
        for names in queue.rounds():
            read, segment = partial(stages.run, stages.read), partial(stages.run, stages.segment)
            for case in overlap(map(_Case, names), read, segment, stages.finish):
                bar.advance(case.name)
                if case.record is not None:
                    outcome.predicted[case.name] = case.record
                    continue
                is_refused = isinstance(case.error, DataError)
                say(f"skipped {case.name}: {case.error if is_refused else repr(case.error)}")
                if is_refused:
                    outcome.refused[case.name] = str(case.error)
                elif case.error is not None:
                    outcome.failed[case.name] = case.error
    outcome = replace(outcome, skipped=tuple(name for name in inputs if name in queue.skipped))
    if options.report:
        output.write_report(out, read_json(out / records.RECORD), list(outcome.missing()))
        say(f"report: {out / output.REPORT}")
    return outcome


@dataclass
class _Case:
    """A case on its way through the stages; each stage releases what only it needs.

    Attributes:
        seconds: of each part.
        geometry: the grid of the scan, from the first stage on.
        differs: what is unlike the training scans.
        source: the scan's series, for DICOM SEG.
        remarks: what was guessed or changed on the way.
        prepared: the result of the first stage.
        label: the result of the second stage.
        observer: what the networks said on the way.
        assessed: how sure the label map is.
        record: the result of the third stage.
        error: what went wrong; the remaining stages skip the case.
    """

    name: str
    seconds: dict[str, float] = field(default_factory=dict)
    geometry: Geometry = field(init=False)
    differs: Differences = field(default_factory=dict)
    source: "Source | None" = None
    remarks: list[str] = field(default_factory=list)
    prepared: Any = None
    label: Any = None
    observer: Any = None
    assessed: dict[str, Any] = field(default_factory=dict)
    record: records.CaseRecord | None = None
    error: Exception | None = None

    @property
    def note(self) -> str:
        """What a DICOM series says about its quality, and about a scan that differs."""
        quality = f"quality {found}" if (found := self.assessed.get("quality")) else ""
        differs = f"DIFFERS from training ({', '.join(self.differs)})" if self.differs else ""
        return ", ".join(filter(None, (quality, differs)))

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Measure a part."""
        started = time.perf_counter()
        yield
        self.seconds[part] = round(time.perf_counter() - started, 3)


class _Stages(NamedTuple):
    """The three stages of a case: read and preprocess, segment, write."""

    predictor: Predictor
    queue: records.CaseQueue
    previous: Mapping[str, Path] | None
    writer: "SegWriter | None"
    options: Options
    bar: Progress
    uids: Mapping[str, str]

    def finish(self, case: _Case) -> _Case:
        try:
            return self.run(self.write, case)
        finally:
            self.queue.release(case.name)

    def run(self, stage: Callable[[_Case], None], case: _Case) -> _Case:
        """Run a stage; an error that concerns this case alone is kept in it.

        Other errors of the user (the folder is not writable, a model is missing) and signals would
        concern every case: they end the run.
        """
        if case.error is None:
            try:
                with noted(case.remarks):
                    stage(case)
            except DataError as error:
                case.error = error
            except (AutosegError, RunError):
                raise
            except Exception as error:
                traceback.clear_frames(error.__traceback__)  # they hold the arrays of the case
                case.error = error
            if case.error is not None:
                case.prepared = case.label = None
        return case

    def read(self, case: _Case) -> None:
        files = self.queue.inputs[case.name]
        with case.timed("reading"):
            if self.writer is not None:
                case.source = self.writer.read(files[0])
            image = read_image(files, own_type=True)
            previous = read_label(self.previous[case.name])[0] if self.previous else None
        case.geometry = image.geometry
        with case.timed("preparing"):
            try:
                case.differs = self.predictor.check(image, [modality_of(file) for file in files])
                if case.differs and self.options.strict:
                    text = differs_from(self.predictor.plan, case.differs)
                    raise DataError(f"{text}; predict it without --strict to accept that")
                self.predictor.warn(case.name, image, case.differs, str(files[0]))
                case.prepared = self.predictor.prepare(image, previous)
            except DataError as error:
                raise DataError(f"{files[0]}: {error}") from error

    def segment(self, case: _Case) -> None:
        save = self._path(case, output.PROBABILITIES)
        maps = self._path(case, UNCERTAINTY) is not None
        case.observer = self.predictor.observer(self.options.quality, maps)
        if self.predictor.reliability is not None:
            self.predictor.reliability.case = case.name

        def tell(part: float) -> None:
            self.bar.tell(f"{case.name} {part:.0%}")

        with case.timed("network"):
            case.label = self.predictor.segment(case.prepared, save, tell, case.observer)
        case.prepared = None

    def write(self, case: _Case) -> None:
        label, geometry, observer = case.label, case.geometry, case.observer
        plan, folder, files = self.predictor.plan, self.queue.folder, self.queue.inputs[case.name]
        first, *more = self.queue.outputs[case.name]
        path = folder / first
        if self.options.quality:
            with case.timed("quality"):
                calibration, evidence = self.predictor.calibration, observer.figures()
                if self.options.shapes or isinstance(calibration, Calibration):
                    evidence = evidence_of(label, geometry, plan.labels, observer)
                case.assessed = assess(calibration, evidence, case.differs)
        if file := self._path(case, UNCERTAINTY):
            output.write_uncertainty(file, observer.uncertainty, geometry)
        if png := self._path(case, PREVIEW):
            with case.timed("preview"):
                # The scan is read again, so as not to keep all of them.
                scan = read_image(files, own_type=True).array[0]
                figure = output.draw_preview(scan, label, geometry, plan)
                save_figure(figure, png)
                if self.writer is not None and case.source is not None:
                    capture, pixels = folder / (case.name + output.CAPTURE), pixels_of(figure)
                    self.writer.write_picture(capture, pixels, case.source, case.note)
        with replacing(path) as temporary:
            with case.timed("writing"):
                found = output.volumes(label, geometry, plan)
                with output.errors_name(path, temporary):
                    if self.writer is not None and case.source is not None:
                        bounds = bounds_text(case.assessed.get("assessment", {}))
                        self.writer.write(temporary, label, case.source, case.note, bounds)
                    else:
                        like = files[0] if isinstance(files[0], Path) else None
                        write_label(temporary, label, geometry, like)
                facts = records.file_facts(temporary)
            # The old file is removed, the record written, then the new file appears: so a run that
            # is killed in between leaves no file that another run would take for complete.
            check_guards(path)
            path.unlink(missing_ok=True)
            about = {
                "inputs": [shown(str(file)) for file in files],
                "input_bytes": records.input_bytes(files),
                "orientation": orientation_of(geometry),
                "differs": case.differs,
                **case.assessed,
                "files": {first: facts} | {n: records.file_facts(folder / n) for n in more},
                "seconds": case.seconds,
                **({"remarks": case.remarks} if case.remarks else {}),
                **({"series_uid": uid} if (uid := self.uids.get(case.name)) else {}),
                **found,
            }
            case.record = self.queue.record.add(case.name, about)
        case.label = case.source = case.observer = None

    def _path(self, case: _Case, suffix: str) -> Path | None:
        """The file of a case with this suffix, if it is wanted."""
        name = case.name + suffix
        return self.queue.folder / name if name in self.queue.outputs[case.name] else None
