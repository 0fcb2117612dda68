"""Time how long commands take to show their help, against nnU-Net's.

    python scripts/bench_startup.py --nnunet /path/to/venv

Both run alternately; the row shows the median round. The first round, in which files are read from
disk and compiled, does not count.
"""

from __future__ import annotations

import sys

from side_by_side import Command, bench_parser, by_turns, print_head, print_machine, print_row, run

PAIRS = (("plan", "nnUNetv2_plan_and_preprocess"), ("predict", "nnUNetv2_predict"))


def show_help(command: list[str]) -> Command:
    """A command that prints its help."""
    places = dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), ".")
    return lambda _: run([*command, "--help"], places)


def main() -> None:
    """The command line."""
    arguments = bench_parser(__doc__, rounds=3, needs_nnunet=True).parse_args()
    print_head()
    for ours, theirs in PAIRS:
        commands = {
            "autoseg": show_help([sys.executable, "-m", f"autoseg.cli.{ours}"]),
            "nnU-Net": show_help([str(arguments.nnunet / "bin" / theirs)]),
        }
        by_turns(commands, 1)
        costs = by_turns(commands, arguments.rounds)
        print_row(f"autoseg_{ours} --help", costs["autoseg"], theirs, costs["nnU-Net"])
    print_machine()


if __name__ == "__main__":
    main()
