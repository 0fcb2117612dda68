"""`autoseg_pack TASK -o model.zip`: pack a trained model and its model card into one file."""

import argparse

from autoseg.cli import common
from autoseg.common.progress import say


def _pack(arguments: argparse.Namespace) -> int:
    from autoseg.export.model_zip import PackOptions, pack

    common.take_task(arguments)
    folder = common.model_folder(arguments, None, arguments.plan)
    workspace = common.find_workspace(arguments)
    folds = tuple(arguments.folds) if arguments.folds else None
    order = PackOptions(workspace, folder.parent.name, folder.name, folds, arguments.card)
    names = pack(order, arguments.output, arguments.overwrite)
    megabytes = arguments.output.stat().st_size / 1e6
    say(f"packed {len(names)} files of {folder}, {megabytes:.1f} MB")
    print(arguments.output)
    return common.DONE


main = common.command("autoseg_pack", _pack)

if __name__ == "__main__":
    raise SystemExit(main())
