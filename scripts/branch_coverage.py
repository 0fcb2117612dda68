"""Read `coverage json` from standard input, and tell which share of all branches tests take.

The percentage that coverage itself gives counts lines as well, most of which are easy to reach.
"""

from __future__ import annotations

import json
import sys
from typing import Any

FEWEST = 0.9


def share_of_branches(report: dict[str, Any]) -> tuple[str, bool]:
    """The share in words, and whether it is large enough."""
    totals = report["totals"]
    taken, there = totals["covered_branches"], totals["num_branches"]
    words = f"branches: {taken} of {there}, {taken / there:.1%}"
    if taken >= FEWEST * there:
        return words, True
    return f"{words}, fewer than {FEWEST:.0%}", False


if __name__ == "__main__":
    words, enough = share_of_branches(json.load(sys.stdin))
    print(words)
    raise SystemExit(0 if enough else 1)
