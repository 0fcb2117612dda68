"""kill -9 of every command at random moments; run again, it ends with the undisturbed result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from autoseg.checkpoint import load_checkpoint
from tests.cli.making import TINY, copy_hippocampus, settings
from tests.dataset.making import HIPPOCAMPUS
from tests.faults.killing import finish, kill_after, visible
from tests.training.making import log_of

TASK = "Task004_Hippocampus"
PATCH = ("sampling.patch_size=[16,16,16]", "inference.overlap=[0,0,0]", "training.epochs=6")
KILLS = {"plan": 10, "train": 6, "predict": 12, "evaluate": 4}


@dataclass(frozen=True)
class Job:
    """A command, where its results lie, and where those of the undisturbed run are kept."""

    words: Callable[[Path], list[str]]
    results: str
    kept: str
    needed: tuple[str, ...]


def common(root: Path) -> list[str]:
    return ["--workspace", str(root)]


def plan_words(root: Path) -> list[str]:
    return [TASK, *common(root), "--processes", "1", *settings(*TINY, *PATCH)]


def train_words(root: Path) -> list[str]:
    return [TASK, *common(root), "fold", "0", "--device", "cpu", "--processes", "1", "--resume"]


def predict_words(root: Path) -> list[str]:
    return ["-i", str(root / "in"), "-o", str(root / "out"), *common(root), "--device", "cpu"]


def evaluate_words(root: Path) -> list[str]:
    folders = ["-g", str(root / "truth"), "-p", str(root / "out"), "-o", str(root / "scores")]
    return [*folders, "-i", str(root / "in"), "--processes", "1"]


JOBS = {
    "plan": Job(plan_words, "preprocessed", "planned", ("raw",)),
    "train": Job(train_words, "models", "models", ("raw", "planned")),
    "predict": Job(predict_words, "out", "out", ("models", "in")),
    "evaluate": Job(evaluate_words, "scores", "scores", ("in", "truth", "out")),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A workspace in which every command ran once to its end, and its seconds."""
    root = tmp_path_factory.mktemp("undisturbed")
    copy_hippocampus(root / "raw" / TASK, 4)
    for number, name in enumerate(("in", "truth")):
        kind = ("imagesTr", "labelsTr")[number]
        (root / name).mkdir()
        for path in sorted((HIPPOCAMPUS / kind).glob("*.nii.gz"))[4:8]:
            shutil.copy(path, root / name)
    seconds = {"plan": finish("plan", plan_words(root))}
    shutil.copytree(root / "preprocessed", root / "planned")
    for name in ("train", "predict", "evaluate"):
        seconds[name] = finish(name, JOBS[name].words(root))
    return root, seconds


def prepared(job: Job, undisturbed: Path, root: Path) -> Path:
    """A workspace with what the command needs, and none of its results."""
    for name in job.needed:
        to = root / ("preprocessed" if name == "planned" else name)
        shutil.copytree(undisturbed / name, to)
    return root


@pytest.mark.parametrize(("name", "kill"), [(n, k) for n in JOBS for k in range(KILLS[n])])
def test_killed_and_run_again(
    undisturbed: tuple[Path, dict[str, float]], tmp_path: Path, name: str, kill: int
) -> None:
    expected, seconds = undisturbed
    job = JOBS[name]
    root = prepared(job, expected, tmp_path)
    share = (kill + Random(f"{name} {kill}").random()) / KILLS[name]
    kill_after(share * seconds[name], name, job.words(root))
    for path in visible(root / job.results).values() if (root / job.results).exists() else ():
        assert_whole(path)
    finish(name, job.words(root))
    assert_same(root / job.results, expected / job.kept)


def assert_whole(path: Path) -> None:
    """What is there under its own name is whole, whenever the kill came."""
    assert path.stat().st_size > 0, path
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".safetensors":
        load_checkpoint(path)


def assert_same(found: Path, expected: Path) -> None:
    """The same files; those without times in them have the same bytes."""
    files, others = visible(found), visible(expected)
    assert files.keys() == others.keys()
    for name, path in files.items():
        if name.endswith((".nii.gz", "final.safetensors", "fingerprint.json", "splits.json")):
            assert path.read_bytes() == others[name].read_bytes(), name
        if path.name == "log.jsonl":
            assert log_of(path.parent) == log_of(others[name].parent)
        if path.name == "table.csv":
            assert path.read_text() == others[name].read_text()
        if path.name == "plan.json":
            assert json.loads(path.read_text())["id"] == json.loads(others[name].read_text())["id"]
