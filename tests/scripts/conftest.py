from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from covid_set import ARCHIVES, CASES, OTHER_MASKS, Archive
from fetching import checksum
from make_phantom import HEADERS, Header, make_case

from tests.scripts.serving import Web, web_server


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as served:
        yield served


@pytest.fixture(scope="session")
def zips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record's archives under their real names, with phantoms of 19 x 19 x 12 voxels at most.

    As in the real ones, the files have the same names in each of them.
    """
    phantom = tmp_path_factory.mktemp("phantom")
    with HEADERS.open(newline="") as file:
        for row in csv.DictReader(file):
            make_case(phantom, Header.of(row, 0.03), seed=1)
    folder = tmp_path_factory.mktemp("zips")
    for archive in (*ARCHIVES, *OTHER_MASKS):
        made = archive if archive in ARCHIVES else replace(archive, folder="labelsTr")
        with zipfile.ZipFile(folder / archive.name, "w") as packed:
            for case in CASES:
                packed.write(made.target(phantom, case), f"{case}.nii.gz")
    return folder


@pytest.fixture
def archives(zips: Path) -> tuple[Archive, ...]:
    """The two archives of the task, with the checksums of the tiny ones."""
    return with_checksums(ARCHIVES, zips)


@pytest.fixture
def other_masks(zips: Path) -> tuple[Archive, ...]:
    return with_checksums(OTHER_MASKS, zips)


def with_checksums(archives: tuple[Archive, ...], folder: Path) -> tuple[Archive, ...]:
    return tuple(
        replace(archive, sha256=checksum(folder / archive.name, "sha256").partition(":")[2])
        for archive in archives
    )
