"""`autoseg_predict -i in/ -o out/`: segment new scans on their own grid."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.cli import common
from autoseg.common.errors import AutosegError, DataError
from autoseg.common.progress import say, shown
from autoseg.prediction import NAMINGS

if TYPE_CHECKING:
    from autoseg.prediction.predictor import Predictor


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = common.parser(
        "autoseg_predict",
        "Segment scans with a trained model: one label map per scan, on the grid of the scan.",
    )
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        metavar="IN",
        help="a scan, a folder of scans or DICOM series, or a zip file of such a folder",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="folder for the label maps"
    )
    parser.add_argument(
        "--list-series", action="store_true", help="only list the DICOM series of IN"
    )
    parser.add_argument(
        "--series",
        metavar="CHOICE",
        help="which DICOM series to segment: a SeriesInstanceUID, or conditions on DICOM tags, "
        "such as 'Modality=CT and SliceThickness<=2'; default: all",
    )
    parser.add_argument(
        "--name-by",
        choices=NAMINGS,
        default=NAMINGS[0],
        help="how the label maps of DICOM series are named: PatientID and SeriesNumber (default), "
        "SeriesInstanceUID, or the folders of the series",
    )
    common.add_model(parser, several=True)
    parser.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: average over scans mirrored on the axes of the plan",
    )
    parser.add_argument(
        "--no-postprocessing",
        action="store_true",
        help="skip the postprocessing that autoseg_evaluate TASK has learned, which keeps only the "
        "largest component of some classes",
    )
    parser.add_argument(
        "--save-probabilities",
        action="store_true",
        help="also write OUT/CASE.probabilities.b2nd: a Blosc2 array (class, x, y, z) of float16 "
        "on the grid of the scan; blosc2.open(FILE)[1] is the NumPy array of the second class",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="predict scans again whose label map exists"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse scans that differ from the training scans (modality, orientation, spacing, "
        "field of view, intensities) instead of warning",
    )
    parser.add_argument(
        "--format",
        choices=["nii.gz", "nrrd", "mha", "dicom-seg"],
        default="nii.gz",
        help="file format of the label maps (default: %(default)s); dicom-seg: DICOM segmentation "
        "objects, for DICOM series",
    )
    parser.add_argument(
        "--orientation",
        metavar="CODE",
        help="bring the axes of each scan to this orientation, such as RAS, instead of that of the "
        "plan: for models of version 0.1.0, whose plans have none; label maps stay on the grid of "
        "the scan",
    )
    parser.add_argument(
        "--preview",
        action="store_true",
        help="also write OUT/CASE.preview.png: three planes through the largest class with the "
        "outlines of all classes; with dicom-seg also as a secondary capture, OUT/CASE.preview.dcm",
    )
    common.add_device(parser)
    parser.add_argument(
        "--backend",
        choices=["auto", "torch", "openvino"],
        default="auto",
        help="what runs the network; auto: OpenVINO on a CPU if it is installed, else torch; both "
        "give the same result up to rounding",
    )
    common.add_workspace(parser)
    return parser


def _predict(arguments: argparse.Namespace) -> int:
    from autoseg.prediction.inputs import unpacked

    if arguments.output is None and not arguments.list_series:
        raise AutosegError("-o OUT is missing: the folder for the label maps")
    with unpacked(arguments.input) as path:
        return (_list_series if arguments.list_series else _predict_in)(path, arguments)


def _list_series(path: Path, arguments: argparse.Namespace) -> int:
    from autoseg.prediction.studies import find_studies, series_choice

    choice = None if arguments.series is None else series_choice(arguments.series)
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


def _predict_in(path: Path, arguments: argparse.Namespace) -> int:
    from autoseg.prediction.batch import predict_cases, show
    from autoseg.prediction.inputs import find_inputs
    from autoseg.prediction.predictor import Ensemble, Predictor
    from autoseg.prediction.studies import series_choice

    choice = None if arguments.series is None else series_choice(arguments.series)
    folders = common.model_folders(arguments)
    members = [
        Predictor(
            folder,
            arguments.folds,
            arguments.device,
            arguments.tta,
            postprocess=len(folders) == 1 and not arguments.no_postprocessing,
            backend=arguments.backend,
            orientation=arguments.orientation,
        )
        for folder in folders
    ]
    predictor = members[0] if len(members) == 1 else Ensemble(members)
    for member in members:
        say(_in_short(member))
        if member.plan.orientation is None and not member.trained_orientations:
            say(
                f"{member.model.folder}: neither the plan nor a fingerprint has the orientation of "
                "the training scans; scans are segmented as they are stored: check that they have "
                "the axis order of the training scans, or give it with --orientation"
            )
    found = find_inputs(path, predictor.plan.channels, arguments.name_by, choice)
    for name, line in found.listed.items():
        say(f"found {name}: {line}")
    for name, reason in found.passed_over.items():
        say(f"ignored {name}: {reason}")
    outcome = predict_cases(
        predictor,
        found.cases,
        arguments.output,
        arguments.overwrite,
        format=arguments.format,
        refused=found.refused,
        save_probabilities=arguments.save_probabilities,
        strict=arguments.strict,
        preview=arguments.preview,
        uids=found.uids,
    )
    show(outcome)
    if arguments.debug:
        outcome.print_tracebacks()
    print(arguments.output)
    if outcome.is_our_fault:
        return common.FAILED
    return common.DONE if outcome.is_complete else common.BAD_INPUT


def _in_short(predictor: Predictor) -> str:
    """The model, and what runs it."""
    plan, folds = predictor.plan, predictor.model.folds
    noun = "fold" if len(folds) == 1 else "mean of folds"
    return (
        f"model: {plan.task}, plan {plan.name}, {noun} {', '.join(folds)}, on {predictor.device} "
        f"with {predictor.backend_name}"
    )


main = partial(common.run, make_parser, _predict)

if __name__ == "__main__":
    raise SystemExit(main())
