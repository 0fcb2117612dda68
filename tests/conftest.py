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
    "experiments/test_slurm.py",  # waits for most of its time
    "faults/test_full_disk.py",
    "cli/test_experiment.py",
    "experiments/test_local_study.py",
    "faults/test_kills.py",
    "faults/test_ending.py",
    "faults/test_containers.py",
    "cli/test_train_processes.py",
    "cli/test_chain.py",
    "faults/test_temporary_folder.py",
    "pretended_card/test_card.py",
    "experiments/test_attempt.py",
    "prediction/test_batch_runs.py",
    "faults/test_dying_workers.py",
    "evaluation/report/test_report_browser.py",
    "test_example.py",
    "cli/test_evaluate_labels.py",
    "faults/test_odd_names.py",
    "training/test_leaving.py",
    "faults/test_circumstances.py",
    "cli/test_front_door.py",
    "cli/test_kinds.py",
    "prediction/test_memory.py",
    "planner/test_patch_rule_memory.py",
    "faults/test_bad_scans.py",
)
# Files whose tests share nothing that is made for the file: each test may run in another process.
APART = (
    *("faults/test_full_disk.py", "faults/test_kills.py", "faults/test_ending.py"),
    *("faults/test_temporary_folder.py", "faults/test_dying_workers.py"),
    *("faults/test_circumstances.py", "faults/test_bad_scans.py", "prediction/test_batch_runs.py"),
    *("cli/test_experiment.py", "cli/test_kinds.py", "cli/test_evaluate_labels.py"),
)


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

    class Files(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if _file_of(nodeid) in APART else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return Files(config, log)
