"""Every command on a tiny workspace: what it needs, and when its results are the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autoseg.models.archive import open_archive
from autoseg.models.checkpoint import load_checkpoint
from tests.cli.making import TINY, copy_hippocampus, settings
from tests.dataset.making import HIPPOCAMPUS
from tests.experiments.studying import write_study, write_task
from tests.faults.killing import finish, visible
from tests.forking import begin
from tests.training.making import log_of

TASK = "Task004_Hippocampus"
PATCH = ("sampling.patch_size=[16,16,16]", "inference.overlap=[0,0,0]", "training.epochs=6")
PACKED = "model.zip"
SAME_BYTES = (
    *(".nii.gz", ".zip", ".onnx", "final.safetensors", "fingerprint.json", "splits.json"),
    *("table.csv", "table.md", "results.csv", "export.json"),
)


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        words: what follows it, for a workspace.
        results: the folder in the workspace that it writes.
        needed: the folders that must be there before.
    """

    words: Callable[[Path], list[str]]
    results: str
    needed: tuple[str, ...]


def plan_words(root: Path) -> list[str]:
    return [TASK, *_in(root), "--processes", "1", *settings(*TINY, *PATCH)]


def train_words(root: Path) -> list[str]:
    return [TASK, *_in(root), "fold", "0", "--device", "cpu", "--processes", "1", "--resume"]


def predict_words(root: Path) -> list[str]:
    return ["-i", str(root / "in"), "-o", str(root / "out"), *_in(root), "--device", "cpu"]


def evaluate_words(root: Path) -> list[str]:
    folders = ["-g", str(root / "truth"), "-p", str(root / "out"), "-o", str(root / "scores")]
    return [*folders, "-i", str(root / "in"), "--processes", "1"]


def pack_words(root: Path) -> list[str]:
    return [TASK, *_in(root), "-o", str(root / "packed" / PACKED), "--overwrite"]


def export_words(root: Path) -> list[str]:
    return [*_in(root), "-o", str(root / "exported" / "networks"), "--format", "openvino"]


def experiment_words(root: Path) -> list[str]:
    study = root / "studied" / "tiny.json5"
    place = ["--workspace", str(root / "studied")]
    return [str(study), *place, "--device", "cpu", "--processes", "1"]


def _in(root: Path) -> list[str]:
    return ["--workspace", str(root)]


JOBS = {
    "plan": Job(plan_words, "preprocessed", ("raw",)),
    "train": Job(train_words, "models", ("raw", "planned")),
    "predict": Job(predict_words, "out", ("models", "in")),
    "evaluate": Job(evaluate_words, "scores", ("in", "truth", "out")),
    "pack": Job(pack_words, "packed", ("models", "planned", "raw")),
    "export": Job(export_words, "exported", ("models",)),
    "experiment": Job(experiment_words, "studied", ("study",)),
}
PREPARED = {"planned": "preprocessed", "study": "studied"}  # kept as it was before the command


@dataclass(frozen=True)
class Undisturbed:
    """A workspace in which every command ran once to its end, and its seconds."""

    root: Path
    seconds: dict[str, float]

    def prepare(self, name: str, root: Path) -> Path:
        """Fill a workspace with what a command needs, and none of its results."""
        for folder in JOBS[name].needed:
            to = root / PREPARED.get(folder, folder)
            shutil.copytree(self.root / folder, to, dirs_exist_ok=True)
        return root

    def assert_same(self, name: str, root: Path) -> None:
        """The command's results are those of this workspace."""
        results = JOBS[name].results
        assert_same(root / results, self.root / results)


def make_undisturbed(root: Path) -> str:
    """Run all commands in a folder; returns their seconds as JSON."""
    copy_hippocampus(root / "raw" / TASK, 4)
    for kind, name in (("imagesTr", "in"), ("labelsTr", "truth")):
        (root / name).mkdir()
        for path in sorted((HIPPOCAMPUS / kind).glob("*.nii.gz"))[4:7]:
            shutil.copy(path, root / name)
    write_task(root / "study")
    write_study(root / "study")
    shutil.copytree(root / "study", root / "studied")
    begin(bool)[0].join()  # starts what forks: its seconds are no command's
    seconds = {}
    for name, job in JOBS.items():
        if name == "train":
            shutil.copytree(root / "preprocessed", root / "planned")
        seconds[name] = finish(name, job.words(root))
        if name == "plan":
            shutil.copytree(root / "preprocessed", root / "only planned")
    shutil.rmtree(root / "preprocessed")
    (root / "only planned").rename(root / "preprocessed")
    return json.dumps(seconds)


def assert_all_whole(folder: Path) -> None:
    """What is there under its own name is whole, whatever came in between."""
    for path in visible(folder).values() if folder.exists() else ():
        if path.suffix != ".log":
            assert path.stat().st_size > 0, path
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        if path.suffix == ".safetensors" and path.name != "foreground.safetensors":
            load_checkpoint(path)  # the others are of stored cases, which have checksums
        if path.suffix == ".zip":
            open_archive(path)


def assert_same(found: Path, expected: Path) -> None:
    """The same files; those without times in them have the same bytes."""
    files, others = visible(found), visible(expected)
    assert files.keys() == others.keys()
    for name, path in files.items():
        if name.endswith(SAME_BYTES):
            assert path.read_bytes() == others[name].read_bytes(), name
        if path.name == "log.jsonl":
            assert log_of(path.parent) == log_of(others[name].parent)
        if path.name == "plan.json":
            assert json.loads(path.read_text())["id"] == json.loads(others[name].read_text())["id"]
