from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import branch_coverage
import pytest


@pytest.mark.parametrize(
    ("taken", "status", "told"),
    [
        (90, 0, "branches: 90 of 100, 90.0%\n"),
        (89, 1, "branches: 89 of 100, 89.0%, less than 90%\n"),
    ],
)
def test_too_few_branches_fail(taken: int, status: int, told: str) -> None:
    report = json.dumps({"totals": {"covered_branches": taken, "num_branches": 100}})
    command = [sys.executable, str(Path(branch_coverage.__file__))]
    done = subprocess.run(command, input=report, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, told)
