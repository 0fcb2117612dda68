"""A clock that runs backwards, and files from the future: the results are those of other days."""

from __future__ import annotations

import json
from pathlib import Path

from autoseg.common.files import read_json
from autoseg.models.checkpoint import load_checkpoint
from autoseg.models.folder import LATEST
from tests.cli.making import settings
from tests.faults.jobs import JOBS, TASK, Undisturbed
from tests.faults.killing import finish
from tests.faults.limits import backward_clock, date_from_the_future


def test_a_scan_that_becomes_older_is_measured_anew(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    root = undisturbed.prepare("plan", tmp_path)
    words = JOBS["plan"].words(root)
    date_from_the_future(root / "raw")
    finish("plan", words)
    images = sorted((root / "raw" / TASK / "imagesTr").glob("*.nii.gz"))
    labels = sorted((root / "raw" / TASK / "labelsTr").glob("*.nii.gz"))
    images[0].write_bytes(images[1].read_bytes())
    labels[0].write_bytes(labels[1].read_bytes())
    finish("plan", words, backward_clock)
    first, second, *_ = _fingerprint(root)["cases"].values()
    assert first == second
    assert first != next(iter(_fingerprint(undisturbed.root)["cases"].values()))


def _fingerprint(root: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = read_json(
        root / "preprocessed" / TASK / "default" / "fingerprint.json"
    )
    return found


def test_a_time_budget_is_kept_by_another_clock(undisturbed: Undisturbed, tmp_path: Path) -> None:
    root = undisturbed.prepare("train", tmp_path)
    budget = settings("training.seconds=6", "training.epochs=400")
    finish("plan", [*JOBS["plan"].words(root), *budget], backward_clock)
    finish("train", JOBS["train"].words(root), backward_clock)
    folder = root / "models" / TASK / "default" / "fold_0"
    epochs = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    state = load_checkpoint(folder / LATEST)[1]
    assert 1 <= len(epochs) == state["epochs"] < 400
    assert all(epoch["seconds"] >= 0 for epoch in epochs)
    assert state["seconds"] > 0
