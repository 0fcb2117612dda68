"""Processes of this machine."""

from __future__ import annotations

import psutil


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs here."""
    try:
        return bool(psutil.pid_exists(pid))
    except OverflowError:  # none has a number that large
        return False
