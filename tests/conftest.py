from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from autoseg.common.parallel import cores
from tests.forking import coarse_pictures

__all__ = ["coarse_pictures"]

# How long an example takes is the machine's affair: other tests and other people's work run beside.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# A shell's background job ignores Ctrl-C, and so would the commands that the tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that take longest, which start first when several processes share the tests.
LONGEST = (
    "experiments/test_slurm.py",
    "faults/test_kills.py",
    "faults/test_full_disk.py",
)
# Files whose tests share nothing that is made for the file: each test may run in another process.
APART = ("faults/test_kills.py", "faults/test_full_disk.py", "faults/test_ending.py")


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0].removeprefix("tests/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files start first, in processes of pytest-xdist."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {file: place for place, file in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(_file_of(item.nodeid), len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores, as some tests wait."""
    return cores() + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, whole files in their order, and some files test by test."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if _file_of(nodeid) in APART else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return Files(config, log)
