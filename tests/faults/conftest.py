from __future__ import annotations

import pytest

from tests.faults.jobs import Undisturbed, make_undisturbed


@pytest.fixture(scope="package")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return make_undisturbed(tmp_path_factory.mktemp("undisturbed"))
