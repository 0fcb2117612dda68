from __future__ import annotations

import io
import re
import sys

import pytest

from autoseg.common.errors import DataError, RunError
from autoseg.prediction.batch import Outcome, show


def error_of(text: str) -> Exception:
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        return error


REFUSED = {"bad [1]": "bad [1].nii.gz: no scan", "worse": "worse.nii.gz: no scan either"}
MIXED = Outcome({"a": {}}, ("b", "c"), REFUSED, {"d": MemoryError()})


@pytest.mark.parametrize(
    ("outcome", "complete", "our_fault"),
    [
        (Outcome(), True, False),
        (Outcome({"a": {}}, ("b",)), True, False),
        (Outcome(refused=REFUSED), False, False),
        (Outcome(failed={"d": MemoryError()}), False, True),
        (Outcome(refused=REFUSED, failed={"d": MemoryError()}), False, True),
        (MIXED, False, False),
    ],
)
def test_whose_fault_it_is(outcome: Outcome, complete: bool, our_fault: bool) -> None:
    assert (outcome.is_complete, outcome.is_our_fault) == (complete, our_fault)


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show(MIXED)
    assert capsys.readouterr().err.splitlines() == [
        "1 predicted, 2 were there already, 2 refused, 1 failed",
        "refused bad [1]: bad [1].nii.gz: no scan",
        "refused worse: worse.nii.gz: no scan either",
        "failed d: memory ran out; close other programs, or use a machine with more",
    ]
    show(Outcome({"a": {}}))
    assert capsys.readouterr().err == "1 predicted, 0 were there already, 0 refused\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    show(MIXED)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    lines = [line.split() for line in plain.splitlines() if line.strip()]
    assert lines[0] == MIXED.counts().split()
    assert lines[1] == ["case", "reason"]
    assert lines[3][:3] == ["refused", "bad", "[1]"]
    assert [line[0] for line in lines[3:]] == ["refused", "refused", "failed"]


def test_failures_are_raised(capsys: pytest.CaptureFixture[str]) -> None:
    Outcome({"a": {}}, ("b",)).raise_failures()
    with pytest.raises(DataError, match=r"bad \[1\].nii.gz: no scan \(and 1 more\)"):
        Outcome(refused=REFUSED).raise_failures()
    with pytest.raises(MemoryError):
        MIXED.raise_failures()
    assert issubclass(RunError, RuntimeError)
    Outcome(failed={"d": error_of("from here")}).print_tracebacks()
    assert "in error_of\n    raise RuntimeError(text)" in capsys.readouterr().err
