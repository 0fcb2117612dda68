"""Where everything is below `models/TASK/PLAN`, and the same files in a packed model."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autoseg.common.errors import AutosegError
from autoseg.common.files import is_there, parse_json, read_json, sha256_of, write_json
from autoseg.models.archive import TEXT, Archive, is_archive, open_archive
from autoseg.plan.plan import Plan, parse_plan

if TYPE_CHECKING:
    from autoseg.models.checkpoint import Tensors

PLAN = "plan.json"
FINGERPRINT = "fingerprint.json"
CALIBRATION = "calibration.json"  # what a cross-validation says about later predictions
EVERY_FOLD = "fold_*"  # pattern of the folders of folds
# In the folder of a fold:
FINAL, LATEST, BEST = "final.safetensors", "latest.safetensors", "best.safetensors"
LOG = "log.jsonl"
VALIDATION = "validation"  # the folder of predictions of its validation cases
SUMMARY = f"{VALIDATION}/summary.json"
CARD = "card.json"  # statements about a model, always in a packed one
QUALIFICATION, NOT_STATED = "content_qualification", "not stated"
QUALIFICATIONS = (RESEARCH, *_) = ("RESEARCH", "PRODUCT", "SERVICE")  # as DICOM defines them
# In a packed model:
PREVIOUS_FOLDER = "previous_stage"
WEIGHTS = re.compile(rf"fold_(\w+)/{re.escape(FINAL)}")


def fold_name(fold: int | str) -> str:
    """The name of a fold's folder, such as `fold_0` or `fold_all`."""
    return f"fold_{fold}"


def fold_folder(models: Path, fold: int | str) -> Path:
    """The folder of a fold in `models/TASK/PLAN`."""
    return models / fold_name(fold)


def folds_in(models: Path) -> list[str]:
    """The folds with a folder in `models/TASK/PLAN`, sorted by name: `0`, `1`, ..., `all`."""
    return sorted(path.name.removeprefix("fold_") for path in models.glob(EVERY_FOLD))


def weights_name(fold: int | str) -> str:
    """The name of a fold's weights in a model, such as `fold_0/final.safetensors`."""
    return f"{fold_name(fold)}/{FINAL}"


class FolderFiles(NamedTuple):
    """The files of a model folder by their names in it, such as `fold_0/final.safetensors`."""

    folder: Path

    def path(self, name: str) -> Path:
        """The path of a file."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether a file or folder exists.

        Raises:
            AutosegError: it cannot be read, such as a link to nothing.
        """
        return is_there(self.path(name))

    def folds(self) -> list[str]:
        """Names of the finished folds, sorted: `0`, `1`, ..., `all`."""
        found = [fold for fold in folds_in(self.folder) if self.has(fold_name(fold))]
        return [fold for fold in found if self.has(weights_name(fold))]

    def json(self, name: str) -> Any:
        """The content of a JSON file."""
        return read_json(self.path(name))

    def checkpoint(self, name: str) -> "tuple[Tensors, dict[str, Any]]":
        """Tensors and state of a checkpoint."""
        from autoseg.models.checkpoint import load_checkpoint  # torch: not needed for paths

        return load_checkpoint(self.path(name))

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file."""
        return sha256_of(self.path(name))

    def previous(self, plan: str) -> "FolderFiles":
        """The files of the previous stage, whose folder is next to this one.

        Raises:
            AutosegError: the folder is missing.
        """
        folder = self.folder.parent / plan
        if not folder.is_dir():
            raise AutosegError(f"{self.folder} refines {plan}: copy the missing models to {folder}")
        return FolderFiles(folder)


class PackedFiles(NamedTuple):
    """The files of a packed model, or of a folder in it, with the methods of `FolderFiles`."""

    archive: Archive
    prefix: str = ""

    def path(self, name: str) -> Path:
        """The path of the archive, followed by the name in it."""
        return self.archive.path / f"{self.prefix}{name}"

    def has(self, name: str) -> bool:
        """Whether a file exists."""
        return f"{self.prefix}{name}" in self.archive.entries

    def folds(self) -> list[str]:
        """Names of the folds, sorted."""
        start = len(self.prefix)
        names = [name[start:] for name in self.archive.entries if name.startswith(self.prefix)]
        return sorted(found[1] for name in names if (found := WEIGHTS.fullmatch(name)))

    def json(self, name: str) -> Any:
        """The content of a JSON file."""
        where = str(self.path(name))
        try:
            text = self._read(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise AutosegError(f"{where} is not UTF-8 text: {error}") from error
        return parse_json(text, where)

    def checkpoint(self, name: str) -> "tuple[Tensors, dict[str, Any]]":
        """Tensors and state of a checkpoint."""
        from autoseg.models.checkpoint import parse_checkpoint  # see `FolderFiles.checkpoint`

        return parse_checkpoint(self._read(name), self.path(name))

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file, which is checked whenever the file is read."""
        return self.archive.entries[f"{self.prefix}{name}"].sha256

    def previous(self, plan: str) -> "PackedFiles":
        """The files of the previous stage, which are in a folder of the archive.

        Raises:
            AutosegError: the folder is missing.
        """
        found = PackedFiles(self.archive, f"{self.prefix}{PREVIOUS_FOLDER}/")
        if not found.has(PLAN):
            raise AutosegError(f"{self.archive.path} refines {plan}, but does not contain it")
        return found

    def _read(self, name: str) -> bytes:
        return self.archive.read(f"{self.prefix}{name}")


ModelFiles = FolderFiles | PackedFiles


def open_model(path: Path) -> ModelFiles:
    """The files of a model folder, or of a packed model, which is checked completely.

    Raises:
        AutosegError: there is no plan, or the archive is refused.
    """
    files: ModelFiles = PackedFiles(open_archive(path)) if is_archive(path) else FolderFiles(path)
    if not files.has(PLAN):
        raise AutosegError(f"{path} has no {PLAN}; give models/TASK/PLAN or a zip of autoseg_pack")
    return files


def qualification_in(files: ModelFiles) -> str:
    """What the card of a model says that its results are for; RESEARCH if it says nothing.

    Raises:
        AutosegError: the card is not valid, or says something unknown.
    """
    card = files.json(CARD) if files.has(CARD) else {}
    stated = card.get(QUALIFICATION, NOT_STATED) if isinstance(card, dict) else card
    if stated == NOT_STATED:
        return RESEARCH
    if stated not in QUALIFICATIONS:
        about = {"path": files.path(CARD), "key": QUALIFICATION, "stated": stated}
        raise AutosegError(TEXT("qualification", known=", ".join(QUALIFICATIONS), **about))
    return str(stated)


def plan_in(files: ModelFiles) -> Plan:
    """The plan of a model.

    Raises:
        PlanError: it is not a plan, or has another format.
    """
    return parse_plan(files.json(PLAN), str(files.path(PLAN)))


def read_calibration(files: ModelFiles) -> dict[str, Any]:
    """What the cross-validation of a model says about its predictions; empty if nothing yet.

    Raises:
        AutosegError: the file is not valid.
    """
    found = files.json(CALIBRATION) if files.has(CALIBRATION) else {}
    if not isinstance(found, dict):
        raise AutosegError(f"{files.path(CALIBRATION)}: not an object; run autoseg_evaluate again")
    return found


def write_calibration(folder: Path, key: str, value: Any) -> None:
    """Replace one part of the calibration of a model; None removes it."""
    found = read_calibration(FolderFiles(folder)) | {key: value}
    write_json(folder / CALIBRATION, {name: of for name, of in found.items() if of is not None})
