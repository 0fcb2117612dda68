from __future__ import annotations

import sys
from pathlib import Path

import pytest
from side_by_side import HEAD, Cost, by_turns, print_head, print_row, processor, run, self_measured


def test_a_row_has_the_columns_of_the_head(capsys: pytest.CaptureFixture[str]) -> None:
    print_head()
    print_row("plan", Cost(2.0, 4.0, 0.5), "nnU-Net", Cost(38.25, 12.0, 2.7))
    print_row("augment", Cost(0.088), "batchgenerators", Cost(0.688))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == list(HEAD)
    assert lines[2] == (
        "| plan | 2.00 s, 4.0 core-s, 0.50 GB | nnU-Net 38.2 s, 12.0 core-s, 2.70 GB | 19.1 | 3.0 |"
    )
    assert lines[3] == "| augment | 88 ms | batchgenerators 688 ms | 7.8 |  |"
    assert {line.count("|") for line in lines} == {HEAD[0].count("|")}


def test_commands_take_turns_in_empty_folders() -> None:
    order = []

    def command(name: str, seconds: list[float]) -> Cost:
        order.append(name)
        return Cost(seconds[order.count(name) - 1])

    def writing(out: Path) -> Cost:
        assert not list(out.iterdir())
        (out / "a").touch()
        return command("slow", [9.0, 1.0, 2.0])

    found = by_turns({"fast": lambda _: command("fast", [1.0, 3.0, 5.0]), "slow": writing}, 3)
    assert order == ["fast", "slow"] * 3
    assert found == {"fast": Cost(3.0), "slow": Cost(2.0)}


def test_a_command_is_measured() -> None:
    cost = run([sys.executable, "-c", "print('not shown')"], {})
    assert cost.seconds > 0
    assert cost.cpu_seconds > 0
    assert 0 < cost.peak_gb < 1


def test_a_command_measures_itself() -> None:
    script = "import os; print('words before'); print(1.5, 2.5, os.environ['PEAK'])"
    found = self_measured([sys.executable, "-c", script], {"PEAK": "0.25"})
    assert found == Cost(1.5, 2.5, 0.25)


def test_the_processor_has_a_name() -> None:
    assert processor()
