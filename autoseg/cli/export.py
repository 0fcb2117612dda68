"""`autoseg_export -m MODEL -o OUT`: write the networks of a model as ONNX and OpenVINO files."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from autoseg.cli import common

FORMATS = ["onnx", "openvino"]


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = common.parser(
        "autoseg_export",
        "Write the patch networks of a trained model, one file per fold, together with the plan. "
        "The output of each file is compared with torch first.",
    )
    common.add_model(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="a new folder"
    )
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=FORMATS,
        help="file formats (default: both); they need the extra `export`",
    )
    common.add_workspace(parser)
    return parser


def _export(arguments: argparse.Namespace) -> int:
    import torch

    from autoseg.export.networks import export_model
    from autoseg.prediction.model import load_model

    model = load_model(common.model_folder(arguments), arguments.folds, torch.device("cpu"))
    export_model(model, arguments.output, list(dict.fromkeys(arguments.format)))
    print(arguments.output)
    return common.DONE


main = partial(common.run, make_parser, _export)

if __name__ == "__main__":
    raise SystemExit(main())
