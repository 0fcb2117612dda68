"""`autoseg_export -m MODEL -o OUT`: write a model for other programs."""

import argparse

from autoseg.cli import common
from autoseg.common.errors import AutosegError

MODELS = ("nnunet", "monai-bundle")  # formats of whole models


def _export(arguments: argparse.Namespace) -> int:
    import torch

    from autoseg.export import monai_bundle, networks, nnunet_export
    from autoseg.prediction.model import load_model

    formats = list(dict.fromkeys(arguments.format))
    if len(formats) > 1 and (whole := next((name for name in formats if name in MODELS), None)):
        raise AutosegError(f"--format {whole} writes a folder of its own; give it alone")
    folder = common.model_folder(arguments, arguments.model, arguments.plan)
    model = load_model(folder, arguments.folds, torch.device("cpu"))
    if formats == ["nnunet"]:
        nnunet_export.export_nnunet(model, arguments.output)
    elif formats == ["monai-bundle"]:
        monai_bundle.export_monai(model, arguments.output)
    else:
        networks.export_model(model, arguments.output, formats)
    print(arguments.output)
    return common.DONE


main = common.command("autoseg_export", _export)

if __name__ == "__main__":
    raise SystemExit(main())
