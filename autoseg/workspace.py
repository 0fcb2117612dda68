"""The workspace: one folder that holds raw tasks, preprocessed cases and trained models."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from autoseg.errors import AutosegError

ENVIRONMENT_VARIABLE = "AUTOSEG_WORKSPACE"


@dataclass(frozen=True)
class Workspace:
    """Paths in a workspace: `raw/TASK`, `preprocessed/TASK/PLAN`, `models/TASK/PLAN/fold_K`."""

    root: Path

    @staticmethod
    def find(given: Path | None = None) -> Workspace:
        """The given folder, else `$AUTOSEG_WORKSPACE`, else the current folder."""
        return Workspace(Path(given or os.environ.get(ENVIRONMENT_VARIABLE) or ".").resolve())

    def raw(self, task: str) -> Path:
        """The folder of a raw task."""
        return self.root / "raw" / task

    def preprocessed(self, task: str, plan: str | None = None) -> Path:
        """The folder of a task's preprocessed data, or of one plan in it."""
        folder = self.root / "preprocessed" / task
        return folder / plan if plan else folder

    def models(self, task: str, plan: str | None = None) -> Path:
        """The folder of a task's models, or of one plan's."""
        folder = self.root / "models" / task
        return folder / plan if plan else folder

    def find_task_folder(self, task: str) -> Path:
        """The raw folder of a task, given as a path, a name, or a unique beginning of its name.

        Raises:
            AutosegError: no task or several tasks fit; the message lists what is there.
        """
        if os.sep in task or task in (".", ".."):
            path = Path(task).resolve()
            if not path.is_dir():
                raise AutosegError(f"task {task!r}: there is no folder {path}")
            return path
        folder = self.root / "raw"
        return folder / _resolve(task, _folders(folder), "task", folder)

    def find_task_name(self, task: str) -> str:
        """The full name of a task that is raw, planned or trained in this workspace."""
        if os.sep in task or task in (".", ".."):
            return self.find_task_folder(task).name
        rooms = [self.root / room for room in ("raw", "preprocessed", "models")]
        names = sorted({name for room in rooms for name in _folders(room)})
        return _resolve(task, names, "task", self.root / "raw")

    def find_plan_name(self, task: str, plan: str | None) -> str:
        """The plan to train: the given one, or the only one that the task has."""
        folder = self.preprocessed(task)
        names = [name for name in _folders(folder) if (folder / name / "plan.json").is_file()]
        if plan is not None:
            return _resolve(plan, names, "plan", folder)
        if not names:
            raise AutosegError(f"{task} has no plan in {folder}; run: autoseg_plan {task}")
        if len(names) > 1:
            raise AutosegError(f"{task} has the plans {', '.join(names)}; choose with --plan NAME")
        return names[0]

    def trained(self) -> list[tuple[str, str]]:
        """(task, plan) of every model with at least one finished fold."""
        found = (self.root / "models").glob("*/*/fold_*/final.safetensors")
        return sorted({(path.parts[-4], path.parts[-3]) for path in found})


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _resolve(given: str, names: list[str], kind: str, folder: Path) -> str:
    """The name that equals `given`, or the only one that begins with it."""
    if given in names:
        return given
    fitting = [name for name in names if given and name.startswith(given)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise AutosegError(
            f"{kind} {given!r} could be {', '.join(fitting)}; write more of the name"
        )
    there = f"there: {', '.join(names)}" if names else "nothing is there"
    raise AutosegError(f"{kind} {given!r} was not found in {folder}; {there}")
