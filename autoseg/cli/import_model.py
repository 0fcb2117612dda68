"""`autoseg_import FOLDER -o MODEL`: make a model of a trained model of nnU-Net v2."""

import argparse

from autoseg.cli import common


def _import(arguments: argparse.Namespace) -> int:
    from autoseg.export.nnunet_import import ImportOptions, import_nnunet

    folds = tuple(arguments.folds) if arguments.folds else None
    options = ImportOptions(arguments.source, folds, arguments.config, arguments.checkpoint)
    for folder in import_nnunet(options, arguments.output):
        print(folder)
    return common.DONE


main = common.command("autoseg_import", _import)

if __name__ == "__main__":
    raise SystemExit(main())
