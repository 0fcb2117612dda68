"""`autoseg_predict -i in/ -o out/`: segment new scans on their own grid."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.cli import common

if TYPE_CHECKING:
    from autoseg.prediction.predictor import Predictor


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = common.parser(
        "autoseg_predict",
        "Segment scans with a trained model: one label map a scan, on the scan's own grid.",
        common.PREDICT,
    )
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        metavar="IN",
        help="a scan, or a folder of scans or DICOM series",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the label maps"
    )
    common.add_model(parser, several=True)
    parser.add_argument(
        "--tta", action="store_true", help="average over mirror images on the axes the plan allows"
    )
    parser.add_argument(
        "--no-postprocessing",
        action="store_true",
        help="leave out what autoseg_evaluate TASK has learned: of some classes only the largest "
        "component is kept",
    )
    parser.add_argument(
        "--save-probabilities",
        action="store_true",
        help="also write OUT/CASE.probabilities.b2nd: one Blosc2 array (class, x, y, z) of float16 "
        "on the scan's own grid; blosc2.open(FILE)[1] is the NumPy array of the second class",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="predict what is there already, too"
    )
    parser.add_argument(
        "--format",
        choices=["nii.gz", "nrrd", "mha", "dicom-seg"],
        default="nii.gz",
        help="of the label maps (default: nii.gz); dicom-seg: DICOM segmentation objects, for "
        "DICOM series",
    )
    common.add_device(parser)
    parser.add_argument(
        "--backend",
        choices=["auto", "torch", "openvino"],
        default="auto",
        help="what runs the network; auto: OpenVINO on a processor where it is installed, else "
        "torch. They differ by rounding alone",
    )
    common.add_workspace(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command `autoseg_predict`."""
    return common.run(make_parser, _predict, argv)


def _predict(arguments: argparse.Namespace) -> int:
    from autoseg.common.progress import say
    from autoseg.prediction.batch import predict_cases, show
    from autoseg.prediction.inputs import find_inputs
    from autoseg.prediction.predictor import Ensemble, Predictor

    folders = common.model_folders(arguments)
    members = [
        Predictor(
            folder,
            arguments.folds,
            arguments.device,
            arguments.tta,
            postprocess=len(folders) == 1 and not arguments.no_postprocessing,
            backend=arguments.backend,
        )
        for folder in folders
    ]
    predictor = members[0] if len(members) == 1 else Ensemble(members)
    for member in members:
        say(_in_short(member))
    found = find_inputs(arguments.input, predictor.plan.channels)
    for name, reason in found.passed_over.items():
        say(f"passed over {name}: {reason}")
    outcome = predict_cases(
        predictor,
        found.cases,
        arguments.output,
        arguments.overwrite,
        format=arguments.format,
        refused=found.refused,
        save_probabilities=arguments.save_probabilities,
    )
    show(outcome)
    if arguments.debug:
        outcome.print_tracebacks()
    print(arguments.output)
    if outcome.is_our_fault:
        return common.FAILED
    return common.DONE if outcome.is_complete else common.BAD_INPUT


def _in_short(predictor: Predictor) -> str:
    """Which model predicts, and what runs it."""
    plan, folds = predictor.plan, predictor.model.folds
    noun = "fold" if len(folds) == 1 else "mean of folds"
    return (
        f"model: {plan.task}, plan {plan.name}, {noun} {', '.join(folds)}, on {predictor.device} "
        f"by {predictor.backend_name}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
