"""`autoseg_pack TASK -o model.zip`: one file that predicts anywhere, and says what it is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from autoseg.cli import common


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = common.parser(
        "autoseg_pack",
        "Pack a trained model into one zip for others: `-m model.zip` predicts with it. It holds "
        "the plan, weights, labels, fingerprint, splits, scores and a card, and the names of the "
        "training cases with them.",
        common.PACK,
    )
    parser.add_argument("task", metavar="TASK", help="name of a trained task, or its beginning")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="ZIP", help="the file to write"
    )
    parser.add_argument("-p", "--plan", metavar="NAME", help="which plan's model, if several")
    parser.add_argument(
        "-f", "--folds", nargs="+", metavar="K", help="which folds (default: all trained)"
    )
    parser.add_argument(
        "--card",
        type=Path,
        metavar="FILE",
        help="a JSON file with texts for what the data set's dataset.json does not say: "
        "intended_use, limits, licence, data_name, data_description, data_licence, "
        "data_reference, citation, contact; the rest is called not stated",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    common.add_workspace(parser)
    parser.set_defaults(model=None)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command `autoseg_pack`."""
    return common.run(make_parser, _pack, argv)


def _pack(arguments: argparse.Namespace) -> int:
    from autoseg.common.progress import say
    from autoseg.export.model_zip import Order, pack
    from autoseg.workflow.workspace import Workspace

    folder = common.model_folder(arguments)
    order = Order(
        workspace=Workspace.find(arguments.workspace),
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


if __name__ == "__main__":
    raise SystemExit(main())
