"""`autoseg_export -m MODEL -o OUT`: write the networks of a model as ONNX and OpenVINO files."""

from __future__ import annotations

import argparse
from functools import partial

from autoseg.cli import common


def _export(arguments: argparse.Namespace) -> int:
    import torch

    from autoseg.export.networks import export_model
    from autoseg.prediction.model import load_model

    model = load_model(common.model_folder(arguments), arguments.folds, torch.device("cpu"))
    export_model(model, arguments.output, list(dict.fromkeys(arguments.format)))
    print(arguments.output)
    return common.DONE


main = partial(common.run, partial(common.parser, "autoseg_export"), _export)

if __name__ == "__main__":
    raise SystemExit(main())
