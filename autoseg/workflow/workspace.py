"""The workspace: one folder with raw tasks, preprocessed cases, trained models and studies."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import is_there, obstacle, read_json, texts_in, write_json
from autoseg.common.progress import nearest, note
from autoseg.dataset.splits import SPLITS_FILE, count_folds
from autoseg.models.folder import FINGERPRINT, PLAN, SUMMARY, FolderFiles, fold_folder, fold_name

TEXT = texts_in(Path(__file__).with_name("messages.json"))  # of the room
ENVIRONMENT_VARIABLE = "AUTOSEG_WORKSPACE"
RAW_FOLDER = "raw_folder.json"  # in preprocessed/TASK: the folder of a task outside raw/
FOLD_LOCK = ".lock"  # in fold_K: held by the process that trains the fold


@dataclass(frozen=True)
class Workspace:
    """Paths in a workspace: `raw/TASK`, `preprocessed/TASK/PLAN`, `models/TASK/PLAN/fold_K`."""

    root: Path

    @classmethod
    def find(cls, given: Path | str | None = None) -> Self:
        """The given folder, else `$AUTOSEG_WORKSPACE`, else the current folder."""
        return cls(Path(given or os.environ.get(ENVIRONMENT_VARIABLE) or ".").resolve())

    def raw(self, task: str) -> Path:
        """The folder of a raw task."""
        return self.root / "raw" / task

    def preprocessed(self, task: str, plan: str | None = None) -> Path:
        """The folder of a task's preprocessed data, or of one plan in it."""
        return self.root / "preprocessed" / task / (plan or "")

    def models(self, task: str, plan: str | None = None) -> Path:
        """The folder of a task's models, or of one plan's."""
        return self.root / "models" / task / (plan or "")

    def fold(self, task: str, plan: str, fold: int | str) -> Path:
        """The folder of one fold's model and results."""
        return fold_folder(self.models(task, plan), fold)

    def study(self, name: str) -> Path:
        """The folder of a study's results, logs and job numbers."""
        return self.root / "experiments" / name

    def find_task_folder(self, task: str) -> Path:
        """The raw folder of a task.

        Args:
            task: a path, or the name of a task in `raw/` or of one planned from another folder.
                A unique prefix of the name or the number in it is enough. A folder name in the
                current folder is tried last.

        Raises:
            AutosegError: no task or several tasks match; the message lists the candidates.
        """
        if _is_path(task):
            return _folder_at(task)
        raw = self.root / "raw"
        folders = self._raw_folders_elsewhere() | {name: raw / name for name in folders_in(raw)}
        if not matching(task, folders) and task and Path(task).is_dir():
            return _folder_at(task)
        folder = folders[_resolve(task, sorted(folders), "task", raw)]
        if not folder.is_dir():
            raise AutosegError(TEXT("raw folder gone", task=task, folder=folder))
        return folder

    def raw_folder(self, task: str) -> Path | None:
        """The raw folder of a task; None if it no longer exists."""
        try:
            return self.find_task_folder(task)
        except AutosegError:
            return None

    def find_task_name(self, task: str) -> str:
        """The full name of a task that is raw, planned or trained in this workspace."""
        if _is_path(task):
            return _folder_at(task).name
        return _resolve(task, self.tasks(), "task", self.root / "raw")

    def tasks(self) -> list[str]:
        """The names of all tasks that are raw, planned or trained."""
        parents = [self.root / parent for parent in ("raw", "preprocessed", "models")]
        return sorted({name for parent in parents for name in folders_in(parent)})

    def plans(self, task: str) -> list[str]:
        """The names of a task's plans."""
        folder = self.preprocessed(task)
        return [name for name in folders_in(folder) if (folder / name / PLAN).is_file()]

    def remember_raw_folder(self, folder: Path) -> None:
        """Record the folder of a task outside `raw/`, so that its name can be used from now on.

        Raises:
            AutosegError: `raw/` holds another task of this name.
        """
        own, record = self.raw(folder.name), self.preprocessed(folder.name) / RAW_FOLDER
        if own.is_dir() and not own.samefile(folder):
            raise AutosegError(TEXT("name taken", folder=folder, own=own))
        if own.is_dir():
            record.unlink(missing_ok=True)
        else:
            write_json(record, {"folder": str(folder.absolute())})

    def _raw_folders_elsewhere(self) -> dict[str, Path]:
        """Task -> its recorded folder outside `raw/`."""
        found = {}
        for path in sorted((self.root / "preprocessed").glob(f"*/{RAW_FOLDER}")):
            values = read_json(path)
            folder = values.get("folder") if isinstance(values, dict) else None
            if not isinstance(folder, str):
                raise AutosegError(TEXT("raw folder record", path=path))
            found[path.parent.name] = Path(folder)
        return found

    def find_plan_name(self, task: str, plan: str | None) -> str:
        """The name of the plan to train: the given one, or the task's only plan."""
        folder, names = self.preprocessed(task), self.plans(task)
        if plan is not None:
            return _resolve(plan, names, "plan", folder)
        if not names:
            raise AutosegError(f"{task} has no plan in {folder}; run: autoseg_plan {task}")
        if len(names) > 1:
            raise AutosegError(f"{task} has the plans {', '.join(names)}; choose with --plan NAME")
        return names[0]

    def states(self, task: str) -> dict[str, tuple[Any, ...] | str]:
        """Of each plan: its trained folds, those without scores, those that are missing, and
        whether its model has a fingerprint; what is wrong if its files cannot be read.
        """
        found: dict[str, tuple[Any, ...] | str] = {}
        for plan in sorted({*self.plans(task), *folders_in(self.models(task))}):
            models, splits = FolderFiles(self.models(task, plan)), self.preprocessed(task, plan)
            try:
                folds = models.folds()
                count = count_folds(splits / SPLITS_FILE) if is_there(splits / SPLITS_FILE) else 0
                scored = ["all", *(k for k in folds if models.has(f"{fold_name(k)}/{SUMMARY}"))]
                unscored = [fold for fold in folds if fold not in scored]
                missing = [str(fold) for fold in range(count) if str(fold) not in folds]
                found[plan] = folds, unscored, missing, models.has(FINGERPRINT)
            except AutosegError as error:
                found[plan] = str(error)
        return found

    def trained(self, task: str | None = None, plan: str = "") -> list[tuple[str, str]]:
        """(task, plan) of every model that has a finished fold.

        Args:
            task: only of this task.
            plan: only with this name, or else names that start so.
        """
        if task or plan:
            models = [model for model in self.trained() if task in (None, model[0])]
            wanted = matching(plan, {name for _, name in models}) if plan else None
            return [model for model in models if wanted is None or model[1] in wanted]
        found = []
        for task in folders_in(self.root / "models"):
            for plan in folders_in(self.models(task)):
                try:
                    if FolderFiles(self.models(task, plan)).folds():
                        found.append((task, plan))
                except DataError as error:  # it may be that of another user
                    note(str(error))
        return found


def folders_in(folder: Path) -> list[str]:
    """Names of the visible folders in a folder, sorted; those that cannot be read are told.

    Raises:
        DataError: the folder itself cannot be read.
    """
    if not is_there(folder):
        return []
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for reason in filter(None, map(obstacle, found)):
        note(reason)
    return [path.name for path in found if not obstacle(path) and path.is_dir()]


def _is_path(task: str) -> bool:
    return os.sep in task or "/" in task or task in (".", "..")


def _folder_at(path: str) -> Path:
    """The folder at a path; a symbolic link keeps its own name."""
    folder = Path(os.path.abspath(path))
    if not folder.is_dir():
        raise AutosegError(f"task {path!r}: {folder} is not a folder")
    return folder


def matching(given: str, names: Iterable[str]) -> list[str]:
    """The exact name, else the names with this number (12 in Task012_Liver) or this prefix."""
    if given in names:
        return [given]
    if given.isdecimal() and (numbered := [n for n in names if _number(n) == int(given)]):
        return numbered
    return [name for name in names if given and name.startswith(given)]


def _number(name: str) -> int | None:
    found = re.match(r"[A-Za-z]+(\d+)(?:_|$)", name)
    return int(found[1]) if found else None


def _resolve(given: str, names: list[str], kind: str, folder: Path) -> str:
    """The only name that matches `given`."""
    matches = matching(given, names)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise AutosegError(f"{kind} {given!r} is ambiguous: {', '.join(matches)}; write more of it")
    available = f"available: {', '.join(names)}" if names else "the folder is empty"
    advice = "; put the task's folder there, or give its path"
    if kind == "plan":
        advice = "" if names else f"; run: autoseg_plan {folder.name} --name {given}"
    advice = nearest(given, names) or advice
    raise AutosegError(f"{kind} {given!r} was not found in {folder}; {available}{advice}")
