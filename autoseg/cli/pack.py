"""`autoseg_pack TASK -o model.zip`: pack a trained model and its model card into one file."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from autoseg.cli import common
from autoseg.common.progress import say


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = common.parser(
        "autoseg_pack",
        "Pack a trained model into one zip file, for prediction with `-m model.zip`. It contains "
        "the plan, weights, labels, fingerprint, splits, scores, a model card, and the names of "
        "the training cases.",
    )
    parser.add_argument(
        "task", metavar="TASK", help="name of a trained task, or a unique prefix of it"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="ZIP", help="file to write"
    )
    parser.add_argument(
        "-p", "--plan", metavar="NAME", help="plan of the model (default: the only trained one)"
    )
    common.add_folds(parser)
    parser.add_argument(
        "--card",
        type=Path,
        metavar="FILE",
        help="JSON file with texts for the model card that dataset.json does not contain: "
        "intended_use, limits, licence, data_name, data_description, data_licence, "
        "data_reference, citation, contact; missing ones appear as not stated",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    common.add_workspace(parser)
    parser.set_defaults(model=None)
    return parser


def _pack(arguments: argparse.Namespace) -> int:
    from autoseg.export.model_zip import PackOptions, pack

    folder = common.model_folder(arguments)
    order = PackOptions(
        workspace=common.find_workspace(arguments),
        task=folder.parent.name,
        plan=folder.name,
        folds=tuple(arguments.folds) if arguments.folds else None,
        card=arguments.card,
    )
    names = pack(order, arguments.output, arguments.overwrite)
    megabytes = arguments.output.stat().st_size / 1e6
    say(f"packed {len(names)} files of {folder}, {megabytes:.1f} MB")
    print(arguments.output)
    return common.DONE


main = partial(common.run, make_parser, _pack)

if __name__ == "__main__":
    raise SystemExit(main())
