from __future__ import annotations

import functools
import sys
from pathlib import Path

import check_card
import pytest
import real_card
import torch


def test_the_table_of_a_card_on_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # All of torch.compile but its C++ compiler, which takes half a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    table = tmp_path / "card.md"
    options = ["--device", "cpu", "--small", "--seconds", "0.05", "--output", str(table)]
    monkeypatch.setattr(sys, "argv", ["check_card.py", *options])
    assert check_card.main() == 0
    lines = table.read_text(encoding="utf-8").splitlines()
    assert capsys.readouterr().out.splitlines() == lines
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert {len(row) for row in rows} == {3}
    names = [row[0] for row in rows[2:]]
    assert len(names) == len(set(names)) == 2 * 3 + 2 * 4 + 2
    figures = {row[0]: row[1] for row in rows}
    assert figures["label map, batch norm"] == "0.0000 % of the voxels differ"
    assert " steps/s" in figures["training, nnU-Net's 128^3 plan, compiled"]


def test_a_wrong_result_is_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [real_card.Row("loss", "1"), real_card.Row("gradient", "2", is_right=False)]
    monkeypatch.setattr(real_card, "rows", lambda _: iter(found))
    assert not real_card.check("cpu", small=True, nnunet=None, seconds=0.1)
    assert [line for line in capsys.readouterr().out.splitlines() if "WRONG" in line] == [
        "| gradient | 2 (WRONG) |  |"
    ]
