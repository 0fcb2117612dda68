"""The workspace: one folder that holds raw tasks, preprocessed cases and trained models."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json, write_json
from autoseg.models.folder import EVERY_FOLD, FINAL

ENVIRONMENT_VARIABLE = "AUTOSEG_WORKSPACE"
RAW_FOLDER = "raw_folder.json"


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
        """The raw folder of a task.

        Args:
            task: a path; or the name of a task in `raw/` or planned from elsewhere, a unique
                beginning of it, or its number; or else a folder's name in the current folder.

        Raises:
            AutosegError: no task or several tasks fit; the message lists what is there.
        """
        if _is_path(task):
            return _folder_at(task)
        raw = self.root / "raw"
        folders = self._planned_from() | {name: raw / name for name in _folders(raw)}
        if not _fitting(task, folders) and task and Path(task).is_dir():
            return _folder_at(task)
        folder = folders[_resolve(task, sorted(folders), "task", raw)]
        if not folder.is_dir():
            raise AutosegError(
                f"task {task!r} was planned from {folder}, which is not there any more; give the "
                "path of its folder instead of its name"
            )
        return folder

    def find_task_name(self, task: str) -> str:
        """The full name of a task that is raw, planned or trained in this workspace."""
        if _is_path(task):
            return _folder_at(task).name
        rooms = [self.root / room for room in ("raw", "preprocessed", "models")]
        names = sorted({name for room in rooms for name in _folders(room)})
        return _resolve(task, names, "task", self.root / "raw")

    def remember_raw_folder(self, folder: Path) -> None:
        """Note where a task lies that is not in `raw/`, so that its name finds it from now on.

        Raises:
            AutosegError: another task of this name is in `raw/`.
        """
        own, note = self.raw(folder.name), self.preprocessed(folder.name) / RAW_FOLDER
        if own.is_dir() and not own.samefile(folder):
            raise AutosegError(
                f"{folder} has the name of another task, {own}; rename one of them, or choose "
                "another --workspace"
            )
        if own.is_dir():
            note.unlink(missing_ok=True)
        else:
            write_json(note, {"folder": str(folder.absolute())})

    def _planned_from(self) -> dict[str, Path]:
        """Task -> its folder, for those that were planned from outside `raw/`."""
        notes = sorted((self.root / "preprocessed").glob(f"*/{RAW_FOLDER}"))
        return {note.parent.name: _noted(note) for note in notes}

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
        found = (self.root / "models").glob(f"*/*/{EVERY_FOLD}/{FINAL}")
        return sorted({(path.parts[-4], path.parts[-3]) for path in found})


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _noted(note: Path) -> Path:
    noted = read_json(note)
    folder = noted.get("folder") if isinstance(noted, dict) else None
    if not isinstance(folder, str):
        raise AutosegError(f'{note}: must be {{"folder": PATH}}; delete it, and plan again')
    return Path(folder)


def _is_path(task: str) -> bool:
    return os.sep in task or "/" in task or task in (".", "..")


def _folder_at(path: str) -> Path:
    """The folder at a path, under the name that the path gives it: a link's own."""
    folder = Path(os.path.abspath(path))
    if not folder.is_dir():
        raise AutosegError(f"task {path!r}: there is no folder {folder}")
    return folder


def _fitting(given: str, names: Iterable[str]) -> list[str]:
    """The name `given`; else those of this number, as Task012_Liver has; else those it begins."""
    if given in names:
        return [given]
    if given.isdecimal() and (numbered := [n for n in names if _number(n) == int(given)]):
        return numbered
    return [name for name in names if given and name.startswith(given)]


def _number(name: str) -> int | None:
    found = re.match(r"[A-Za-z]+(\d+)(?:_|$)", name)
    return int(found[1]) if found else None


def _resolve(given: str, names: list[str], kind: str, folder: Path) -> str:
    """The only name that fits `given`."""
    fitting = _fitting(given, names)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise AutosegError(
            f"{kind} {given!r} could be {', '.join(fitting)}; write more of the name"
        )
    there = f"there: {', '.join(names)}" if names else "nothing is there"
    if kind == "task":
        there += "; put the task's folder there, or give the path of it"
    raise AutosegError(f"{kind} {given!r} was not found in {folder}; {there}")
