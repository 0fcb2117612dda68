"""The files of a trained model: those of a folder `models/TASK/PLAN`, or of one packed as a zip."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autoseg.common.errors import AutosegError
from autoseg.common.files import parse_json, read_json, sha256_of
from autoseg.models.archive import Archive, is_archive, open_archive
from autoseg.models.checkpoint import Tensors, load_checkpoint, parse_checkpoint
from autoseg.plan.plan import Plan
from autoseg.plan.reading import plan_of

PLAN, FINAL = "plan.json", "final.safetensors"
PREVIOUS_FOLDER = "previous_stage"
WEIGHTS = re.compile(rf"fold_(\w+)/{re.escape(FINAL)}")


class ModelFiles(Protocol):
    """Files by their names in a model folder, such as `fold_0/final.safetensors`."""

    def path(self, name: str) -> Path:
        """What to call a file in a message."""

    def has(self, name: str) -> bool:
        """Whether it is there."""

    def folds(self) -> list[str]:
        """Names of the finished folds, sorted: `0`, `1`, ..., `all`."""

    def json(self, name: str) -> Any:
        """Its content; an AutosegError if it is missing or no JSON."""

    def checkpoint(self, name: str) -> tuple[Tensors, dict[str, Any]]:
        """Its tensors and its state; an AutosegError if it is missing or damaged."""

    def sha256(self, name: str) -> str:
        """The SHA-256 of its content."""

    def previous(self, plan: str) -> ModelFiles:
        """The files of the model that a cascade refines, which has a plan of this name."""


@dataclass(frozen=True)
class FolderFiles:
    """The files of a model folder."""

    folder: Path

    def path(self, name: str) -> Path:
        """The file."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether it is there."""
        return self.path(name).is_file()

    def folds(self) -> list[str]:
        """Names of the finished folds, sorted."""
        found = sorted(path.parent.name for path in self.folder.glob(f"fold_*/{FINAL}"))
        return [name.removeprefix("fold_") for name in found]

    def json(self, name: str) -> Any:
        """Its content."""
        return read_json(self.path(name))

    def checkpoint(self, name: str) -> tuple[Tensors, dict[str, Any]]:
        """Its tensors and its state."""
        return load_checkpoint(self.path(name))

    def sha256(self, name: str) -> str:
        """The SHA-256 of its content."""
        return sha256_of(self.path(name))

    def previous(self, plan: str) -> FolderFiles:
        """The folder beside this one.

        Raises:
            AutosegError: it is missing.
        """
        folder = self.folder.parent / plan
        if not folder.is_dir():
            raise AutosegError(
                f"{self.folder} refines {plan}, whose models are missing: put them into {folder}"
            )
        return FolderFiles(folder)


@dataclass(frozen=True)
class PackedFiles:
    """The files of a packed model, or below a folder in it."""

    archive: Archive
    prefix: str = ""

    def path(self, name: str) -> Path:
        """The archive and the name in it."""
        return self.archive.path / f"{self.prefix}{name}"

    def has(self, name: str) -> bool:
        """Whether it is there."""
        return f"{self.prefix}{name}" in self.archive.entries

    def folds(self) -> list[str]:
        """Names of the folds, sorted."""
        start = len(self.prefix)
        names = [name[start:] for name in self.archive.entries if name.startswith(self.prefix)]
        return sorted(found[1] for name in names if (found := WEIGHTS.fullmatch(name)))

    def json(self, name: str) -> Any:
        """Its content."""
        where = str(self.path(name))
        try:
            text = self._read(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise AutosegError(f"{where} is no UTF-8 text: {error}") from error
        return parse_json(text, where)

    def checkpoint(self, name: str) -> tuple[Tensors, dict[str, Any]]:
        """Its tensors and its state."""
        return parse_checkpoint(self._read(name), self.path(name))

    def sha256(self, name: str) -> str:
        """The SHA-256 of its content, which is checked whenever it is read."""
        return self.archive.entries[f"{self.prefix}{name}"].sha256

    def previous(self, plan: str) -> PackedFiles:
        """The folder in the archive.

        Raises:
            AutosegError: it is missing.
        """
        found = PackedFiles(self.archive, f"{self.prefix}{PREVIOUS_FOLDER}/")
        if not found.has(PLAN):
            raise AutosegError(f"{self.archive.path} refines {plan}, whose models are not in it")
        return found

    def _read(self, name: str) -> bytes:
        return self.archive.read(f"{self.prefix}{name}")


def open_model(path: Path) -> ModelFiles:
    """The files of a model folder, or of a packed model, all of which is checked.

    Raises:
        AutosegError: it has no plan, or the archive is refused.
    """
    files: ModelFiles = PackedFiles(open_archive(path)) if is_archive(path) else FolderFiles(path)
    if not files.has(PLAN):
        kind = "packed model" if is_archive(path) else "model folder"
        raise AutosegError(
            f"{path} is no {kind}: it has no {PLAN}; give models/TASK/PLAN, or a zip of "
            "autoseg_pack"
        )
    return files


def plan_in(files: ModelFiles) -> Plan:
    """The plan of a model.

    Raises:
        PlanError: it is not a plan, or of another format.
    """
    return plan_of(files.json(PLAN), str(files.path(PLAN)))
