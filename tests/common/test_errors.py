"""How a message names an optional extra, and what a signal does."""

from __future__ import annotations

import importlib.metadata
import signal
import time
import tomllib
import weakref
from pathlib import Path

import pytest

import autoseg
from autoseg.common.errors import DISTRIBUTION, Stopped, install_hint, stopped_by_signals

SOURCE = Path(autoseg.__file__).parents[1]


def test_the_distribution_is_the_one_of_the_project_file() -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == DISTRIBUTION
    assert {"cpu", "dicom", "export", "slurm", "tensorboard"} <= set(
        project["optional-dependencies"]
    )


def test_an_installed_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed:
        name = "autoseg-of-metadata"

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed)
    assert install_hint("cpu") == "pip install 'autoseg-of-metadata[cpu]'"


def test_a_source_tree_is_named_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert install_hint("cpu") == f"pip install '{SOURCE}[cpu]'"


def test_a_signal_during_a_finaliser_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    class Held:
        pass

    def finalise(_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0)  # the handler runs here; Python ignores what it raises

    def run() -> None:
        held = Held()
        reference = weakref.ref(held, finalise)
        del held
        assert reference() is None
        end = time.monotonic() + 30
        while time.monotonic() < end:
            time.sleep(0.01)

    with pytest.raises(Stopped, match="SIGTERM; resume"), stopped_by_signals("resume"):
        run()
    assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().err == ""


def test_an_error_that_a_signal_causes_is_not_told() -> None:
    def run() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(1)
        except Stopped as stop:
            raise ImportError("initialization failed") from stop

    with pytest.raises(Stopped, match="SIGTERM; resume"), stopped_by_signals("resume"):
        run()
