"""What training and prediction do on a graphics card, as Markdown tables.

    python scripts/check_card.py [--nnunet /path/to/venv] [--output card.md]
    python scripts/check_card.py --pretend
    python scripts/check_card.py --device cpu --small

On a card: whether it agrees with the processor, and its speed, waiting and memory, in less than 6
minutes; the exit status is 1 if a result is wrong. `--pretend` needs no card: the CUDA code runs on
tensors without values (see tests/pretended_card). Waits, traffic and memory are exact; there are no
times. The last form tries the script itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEAD = (
    "plan",
    "waits",
    "GB a step",
    "peak GB",
    "planned GB",
    "copies to the card",
    "layout copies",
)


PREDICTION = (
    "prediction",
    "tiles",
    "KB to the host",
    "KB of label maps",
    "KB a tile",
    "copies",
    "waits",
)


def pretended() -> dict[str, dict[str, Any]]:
    """The figures of all plans, from a process that has a pretended card."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.pretended_card.step"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretend", action="store_true", help="without a card")
    parser.add_argument("--device", default="gpu", help="default: the first card")
    parser.add_argument("--small", action="store_true", help="small plans and scans")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--nnunet", type=Path, help="virtual environment with nnU-Net")
    parser.add_argument("--output", type=Path, help="file for the table")
    arguments = parser.parse_args()
    if arguments.pretend:
        print_pretended()
        return 0
    import real_card  # loads torch, which must not be there before a pretended card

    lines: list[str] = []

    def tell(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    is_right = real_card.check(
        arguments.device, arguments.small, arguments.nnunet, arguments.seconds, tell
    )
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if is_right else 1


def print_pretended() -> None:
    """Print the tables and the number of waits."""
    every = pretended()
    found = {name: of for name, of in every.items() if "waits" in of}
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    for name, of in found.items():
        planned = f"{of['planned_gb']:.2f}" if "planned_gb" in of else ""
        cells = [name, sum(of["waits"].values()), f"{of['traffic_gb']:.4g}", f"{of['peak_gb']:.3g}"]
        cells += [planned, sum(of["copies_to_card"].values()), sum(of["layouts"].values())]
        print(f"| {' | '.join(map(str, cells))} |")
    print(f"\n| {' | '.join(PREDICTION)} |\n|{' --- |' * len(PREDICTION)}")
    for name, of in every.items():
        if "tiles" in of:
            to_host, label, tiles = of["to_host"] / 1000, of["label"] / 1000, of["tiles"]
            cells = [name.removeprefix("predict "), tiles, f"{to_host:.1f}", f"{label:.1f}"]
            cells += [f"{to_host / tiles:.2f}", of["copies"], sum(of["bus_waits"].values())]
            print(f"| {' | '.join(map(str, cells))} |")
    waits = sum(sum(of["waits"].values()) for of in found.values())
    print(f"\nwaits in a training step: {waits}")


if __name__ == "__main__":
    raise SystemExit(main())
