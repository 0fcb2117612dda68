"""`autoseg doctor`: this machine, the device and the workspace, to paste into a bug report."""

import argparse
import os
import platform
import shutil
import sys
from importlib.metadata import distributions
from pathlib import Path

from autoseg import __version__
from autoseg.cli import common
from autoseg.common.pages import fill
from autoseg.common.parallel import GB, cores, free_memory
from autoseg.common.progress import listed


def _doctor(arguments: argparse.Namespace) -> int:
    workspace = common.find_workspace(arguments)
    text = fill(
        Path(__file__).with_name("doctor.txt.j2"),
        version=__version__,
        folder=Path(__file__).parents[1],
        python=f"{platform.python_version()} ({sys.executable})",
        system=platform.platform(),
        cores=f"{cores()} of {os.cpu_count()}",
        memory=f"{free_memory() / GB:.1f} GB",
        versions={package.name.lower(): package.version for package in distributions()},
        environment=os.environ,
        workspace=workspace,
        free_gb=shutil.disk_usage(workspace.root).free / GB,
        is_writable=os.access(workspace.root, os.W_OK),
        listed=listed,
    )
    print(text.rstrip())

    from autoseg.workflow.api import describe_device  # last: it may not work

    print(f"device: {describe_device(arguments.device)}")
    return common.DONE


main = common.command("autoseg_doctor", _doctor)

if __name__ == "__main__":
    raise SystemExit(main())
