from __future__ import annotations

import pytest

from autoseg.planner import budget
from tests.one_thread import one_thread

__all__ = ["one_thread"]


@pytest.fixture(autouse=True)
def _idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of tests do not depend on how busy the machine is."""
    monkeypatch.setattr(budget, "used_by_others", lambda: 0.0)
