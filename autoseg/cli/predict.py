"""`autoseg_predict -i in/ -o out/`: segment new scans on their own grid."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.cli import common
from autoseg.common.errors import AutosegError, DataError
from autoseg.common.pages import fill
from autoseg.common.progress import say, shown

if TYPE_CHECKING:
    from autoseg.prediction.studies import Choice


def _predict(arguments: argparse.Namespace) -> int:
    from autoseg.prediction.inputs import unpacked
    from autoseg.prediction.studies import series_choice

    if arguments.output is None and not arguments.list_series:
        raise AutosegError("-o OUT is missing: the folder for the label maps, as in -o out/")
    choice = None if arguments.series is None else series_choice(arguments.series)
    with unpacked(arguments.input) as path:
        return (_list_series if arguments.list_series else _predict_in)(path, arguments, choice)


def _list_series(path: Path, arguments: argparse.Namespace, choice: "Choice | None") -> int:
    from autoseg.prediction.studies import find_studies

    if not path.is_dir():
        raise DataError(f"{path}: not a folder or zip file with DICOM series")
    studies = find_studies(path, arguments.name_by, choice)
    chosen = {scan.name for scan in studies.scans}
    for name, line in studies.listed.items():
        reason = studies.refused.get(name) or studies.passed_over.get(name) or "not chosen"
        print(shown(f"{name}: {line}" + ("" if name in chosen else f"; not segmented: {reason}")))
    for name in (studies.refused | studies.passed_over).keys() - studies.listed.keys():
        say(f"{name}: {studies.refused.get(name) or studies.passed_over[name]}")
    return common.DONE


def _predict_in(path: Path, arguments: argparse.Namespace, choice: "Choice | None") -> int:
    from autoseg.prediction import batch, inputs
    from autoseg.prediction.predictor import Ensemble, Predictor

    folders = common.model_folders(arguments)
    how = common.named_in(Predictor, arguments) | {"mirror": arguments.tta}
    how["postprocess"] = len(folders) == 1 and not arguments.no_postprocessing
    members = [Predictor(**how | {"model": folder}) for folder in folders]
    predictor = members[0] if len(members) == 1 else Ensemble(members)
    say(fill(Path(__file__).with_name("predict.txt.j2"), members=members).rstrip())
    found = inputs.find_inputs(path, predictor.plan.channels, arguments.name_by, choice)
    for name, line in found.listed.items():
        say(f"found {name}: {line}")
    for name, reason in found.passed_over.items():
        say(f"ignored {name}: {reason}")
    found, folder, arguments.format = found.for_output(arguments.output, arguments.format)
    options = batch.Options(**common.named_in(batch.Options, arguments))
    outcome = batch.predict_cases(predictor, found, folder, options)
    batch.show(outcome, arguments.debug)
    print(arguments.output)
    if outcome.is_our_fault:
        return common.FAILED
    return common.DONE if outcome.is_complete else common.BAD_INPUT


main = common.command("autoseg_predict", _predict)

if __name__ == "__main__":
    raise SystemExit(main())
