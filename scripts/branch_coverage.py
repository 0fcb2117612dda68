"""Read `coverage json` from standard input, and print the share of all branches that tests cover.

The percentage of coverage itself also counts lines, most of which are easy to cover.
"""

from __future__ import annotations

import json
import sys
from typing import Any

FEWEST = 0.9


def share_of_branches(report: dict[str, Any]) -> tuple[str, bool]:
    """The share as text, and whether it is large enough."""
    totals = report["totals"]
    covered, total = totals["covered_branches"], totals["num_branches"]
    words = f"branches: {covered} of {total}, {covered / total:.1%}"
    if covered >= FEWEST * total:
        return words, True
    return f"{words}, less than {FEWEST:.0%}", False


if __name__ == "__main__":
    words, enough = share_of_branches(json.load(sys.stdin))
    print(words)
    raise SystemExit(0 if enough else 1)
