"""What a training step and a prediction do on a graphics card, as Markdown tables.

    python scripts/check_card.py --pretend

`--pretend` needs no card: the CUDA code runs on tensors without values (see tests/pretended_card).
Waits, traffic and memory are exact; there are no times.
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


def main() -> None:
    """Print the table and the number of waits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretend", action="store_true", required=True, help="without a card")
    parser.parse_args()
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
    main()
