"""Download the COVID-19 CT set of Ma et al. 2020 and lay it out as WORKSPACE/raw/Task001_COVID.

    python scripts/download_covid.py --workspace WORKSPACE
    python scripts/download_covid.py --workspace WORKSPACE --from FOLDER_WITH_THE_ZIPS
    python scripts/download_covid.py --workspace WORKSPACE --test-set COVID-19-20_v2

About 1.1 GB from Zenodo record 3757476; the checksums are verified. An interrupted download
continues where it stopped, also when the command is run again; existing files are kept. The scans
are licensed CC BY-NC-SA: not for commercial use.

`--test-set` lays out scans of An et al. 2020 with the annotations of the COVID-19-20 challenge
(covid-segmentation.grand-challenge.org, which requires a registration) as
WORKSPACE/test_sets/COVID-19-20, with imagesTs and labelsTs (0 background, 1 infection).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covid_set import (
    ARCHIVES,
    OTHER_MASKS,
    TASK,
    Archive,
    check_free,
    check_space,
    is_whole,
    lay_out,
)
from covid_test_set import FOLDER, lay_out_test_set
from fetching import Remote, Wait, checksum, fetch, fetch_json

from autoseg.cli.common import DONE, add_options, parser, run
from autoseg.common.errors import DataError, RunError
from autoseg.common.locks import locked
from autoseg.common.progress import say
from autoseg.workflow.workspace import Workspace

RECORD = "https://zenodo.org/api/records/3757476"
CHECKSUMS = ("md5", "sha256", "sha512")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return run(make_parser, download, argv)


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = parser("download_covid.py", (__doc__ or "").partition("\n")[0])
    add_options(made, {"--workspace": None})
    made.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FOLDER",
        help="use the zip files in this folder instead of downloading them",
    )
    made.add_argument(
        "--all-masks",
        action="store_true",
        help="also lay out the maps of the lungs alone and of the infection alone "
        "(lung_masksTr, infection_masksTr); no command of autoseg needs them",
    )
    made.add_argument(
        "--test-set",
        type=Path,
        metavar="FOLDER",
        help="also lay out the scans of An et al. with the COVID-19-20 annotations, unpacked here",
    )
    return made


def download(
    arguments: argparse.Namespace,
    archives: Sequence[Archive] = ARCHIVES,
    others: Sequence[Archive] = OTHER_MASKS,
    record: str = RECORD,
    wait: Wait = time.sleep,
) -> int:
    """Download the set and lay it out; `archives`, `others` and `record` define the set."""
    workspace = Workspace.find(arguments.workspace)
    if arguments.test_set:
        target = workspace.root / "test_sets" / FOLDER
        count = lay_out_test_set(arguments.test_set, target)
        say(f"{target}: {count} cases")
    task = workspace.raw(TASK)
    wanted = [*archives, *(others if arguments.all_masks else ())]
    folder = workspace.root / "downloads"
    check_free(task)
    if not is_whole(task, wanted):
        with locked(task.with_name(f".{TASK}.lock"), f"{task}"):
            missing = [archive for archive in wanted if not is_whole(task, [archive])]
            if arguments.source:
                lay_out(given(missing, arguments.source), task)
            else:
                lay_out(downloaded(missing, folder, record, wait), task)
    clean(folder, wanted)
    say(f"{task}: complete")
    return DONE


def clean(folder: Path, archives: Sequence[Archive]) -> None:
    """Delete downloaded archives once their files are laid out, and the folder if it is empty."""
    for archive in archives:
        (folder / archive.name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def given(archives: Sequence[Archive], folder: Path) -> dict[Archive, Path]:
    """The archives in a user's folder, which must be the published ones.

    Raises:
        DataError: one is missing or is another file.
    """
    for archive in archives:
        path = folder / archive.name
        if not path.is_file():
            raise DataError(
                f"{path} is missing; download it from https://zenodo.org/records/3757476"
            )
        found = checksum(path, "sha256").partition(":")[2]
        if found != archive.sha256:
            raise DataError(
                f"{path} has the SHA-256 {found}, not {archive.sha256}; it is incomplete or not "
                "the published file; download it again"
            )
    return {archive: folder / archive.name for archive in archives}


def downloaded(
    archives: Sequence[Archive], folder: Path, record: str, wait: Wait
) -> dict[Archive, Path]:
    """The archives, downloaded to a folder and verified by the checksums of the record."""
    remotes = remotes_of(fetch_json(record, wait), record)
    paths = {archive: folder / archive.name for archive in archives}
    for archive in archives:
        if archive.name not in remotes:
            raise RunError(f"{record} has no file {archive.name}; there: {', '.join(remotes)}")
    loading = sum(remotes[a.name].size for a, path in paths.items() if not path.is_file())
    check_space(folder, 2 * loading)  # the compressed scans in them take the same space again
    for archive, path in paths.items():
        fetch(remotes[archive.name], path, wait)
    return paths


def remotes_of(answer: Any, record: str) -> Mapping[str, Remote]:
    """The files that Zenodo's answer lists, by name.

    Raises:
        RunError: the answer has another format.
    """
    try:
        files = {
            str(file["key"]): Remote(file["links"]["self"], int(file["size"]), file["checksum"])
            for file in answer["files"]
        }
        known = all(remote.checksum.startswith(CHECKSUMS) for remote in files.values())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{record} lists its files in another format ({error}); download the zips with "
            "a browser and give their folder with --from"
        ) from error
    if not known:
        raise RunError(f"{record} has checksums other than {', '.join(CHECKSUMS)}; use --from")
    return files


if __name__ == "__main__":
    raise SystemExit(main())
