"""Plans of one task that preprocess alike share their cases: linked, not made and stored again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from autoseg.common.files import CHECKSUMS, temporary_for
from autoseg.preprocessing.store import FILES, CaseStore

Source = Sequence[Sequence[int]]


def link_from_others(store: CaseStore, plans: Path, name: str, source: Source) -> bool:
    """Bring a case into the store from another plan's, if one has it from the same files.

    A linked case is safe to keep: a store never changes a file, it puts a new one in its place.

    Args:
        store: where the case is missing.
        plans: the folder of the task's plans, each with its store under the name of this one's.
        name: the case.
        source: as for `CaseStore.has`.

    Returns:
        whether the case is there now.
    """
    for folder in sorted(plans.glob(f"*/{store.folder.name}")):
        other = CaseStore(folder, store.preprocessing_id)
        if folder == store.folder or not other.has(name, source) or not other.is_whole(name):
            continue
        if _link(folder / name, store.folder / name):
            return True
    return False


def _link(case: Path, target: Path) -> bool:
    """Link the files of a case, or copy them where the file system knows no links."""
    temporary = temporary_for(target)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for file in (*FILES, CHECKSUMS):
            try:
                os.link(case / file, temporary / file)
            except OSError:
                shutil.copyfile(case / file, temporary / file)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
    except OSError:  # it has gone meanwhile, or the disk is full: preprocessing will say so
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True
