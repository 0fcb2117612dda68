from __future__ import annotations

import pytest

from autoseg.common.progress import counted, listed


@pytest.mark.parametrize(
    ("number", "noun", "told"),
    [
        (0, "case", "0 cases"),
        (1, "case", "1 case"),
        (21, "epoch", "21 epochs"),
        (1, "patch", "1 patch"),
        (2, "patch", "2 patches"),
        (3, "class", "3 classes"),
    ],
)
def test_counted(number: int, noun: str, told: str) -> None:
    assert counted(number, noun) == told


def test_listed() -> None:
    assert listed("fold", iter([2])) == "fold 2"
    assert listed("fold", ("0", "all")) == "folds 0, all"
