from __future__ import annotations

import json

import pytest

from tests.faults.jobs import Undisturbed, make_undisturbed
from tests.forking import forked_workers
from tests.sharing import made_once

__all__ = ["forked_workers"]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    root, seconds = made_once(tmp_path_factory, "undisturbed", make_undisturbed)
    return Undisturbed(root, json.loads(seconds))
