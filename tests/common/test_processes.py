from __future__ import annotations

import os

from autoseg.common.files import is_alive
from tests.making import dead_process


def test_who_is_alive() -> None:
    assert is_alive(os.getpid())
    assert is_alive(os.getppid())
    assert not is_alive(dead_process())
    assert not is_alive(10**30)
