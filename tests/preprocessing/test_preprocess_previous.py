from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autoseg.common.errors import AutosegError, DataError
from autoseg.dataset.task import Case
from autoseg.image.image import Image
from autoseg.plan.plan import Plan
from autoseg.preprocessing.preprocess import add_previous, prepare_previous, preprocess_case
from autoseg.preprocessing.steps import prepare
from autoseg.preprocessing.store import CaseStore
from tests.dataset.making import write_case, write_scan
from tests.making import CASCADE, REGIONS, grid, tiny_plan

SHAPE, SPACING = (11, 9, 8), (1.0, 1.5, 2.0)
STEPS: list[dict[str, Any]] = [{"step": "crop_to_nonzero"}, {"step": "resample"}]


def cascade(**changes: Any) -> Plan:
    values = {"preprocessing": STEPS, "target_spacing_mm": [1.3, 1.3, None], **CASCADE}
    return tiny_plan(**values | changes)


def scan(seed: int = 0) -> NDArray[np.float32]:
    array = np.zeros(SHAPE, np.float32)
    array[2:10, 1:8, 1:] = np.random.default_rng(seed).uniform(1, 2, (8, 7, 7))
    return array


def found_before(seed: int = 1, values: tuple[int, ...] = (0, 1, 2)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), SHAPE)


@pytest.mark.parametrize("changes", [{}, REGIONS, {"preprocessing": STEPS[:1]}])
def test_a_segmentation_goes_where_a_label_goes(changes: dict[str, Any]) -> None:
    plan = cascade(**changes)
    image, before = Image(scan()[None], grid(SHAPE, SPACING)), found_before(values=(0, 1, 2, 4))
    prepared = prepare(plan, image, before)
    _, x, y, z = prepared.image.shape
    found = prepare_previous(plan, before, SPACING, prepared.box, (x, y, z))
    assert found.dtype == np.int16
    assert prepared.label is not None
    assert np.array_equal(found, prepared.label)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    raw = tmp_path / "Rohdaten é"
    write_case(raw, "a", scan(), found_before(2))
    return Case("a", (raw / "imagesTr/a_0000.nii.gz",), raw / "labelsTr/a.nii.gz")


def stored(plan: Plan, case: Case, folder: Path) -> CaseStore:
    store = CaseStore(folder, plan.preprocessing_id)
    preprocess_case(plan, store, case)
    return store


def test_it_is_stored_beside_the_case(tmp_path: Path, case: Case) -> None:
    plan, file = cascade(), tmp_path / "lowres" / "a.nii.gz"
    store = stored(plan, case, tmp_path / "cases")
    assert store.open("a").previous is None
    write_scan(file, found_before())
    add_previous(plan, store, [case], {"a": file}, processes=1)
    opened = store.open("a")
    assert opened.previous is not None
    expected = prepare(plan, Image(scan()[None], grid(SHAPE)), found_before()).label
    assert expected is not None
    assert np.array_equal(opened.previous[:], expected)
    assert store.is_whole("a")
    assert opened.previous.shape == opened.label.shape
    assert not list((tmp_path / "cases").rglob(".tmp*"))


def test_it_is_made_once_and_again_when_the_file_changes(tmp_path: Path, case: Case) -> None:
    plan, file = cascade(), tmp_path / "a.nii.gz"
    store = stored(plan, case, tmp_path / "cases")
    write_scan(file, found_before())
    add_previous(plan, store, [case], {"a": file}, processes=1)
    at = tmp_path / "cases" / "a" / "previous.b2nd"
    at.touch()
    os.utime(at, (1, 1))
    add_previous(plan, store, [case], {"a": file}, processes=1)
    assert at.stat().st_mtime == 1
    write_scan(file, np.zeros(SHAPE, np.uint8))
    os.utime(file, (5, 5))
    add_previous(plan, store, [case], {"a": file}, processes=1)
    opened = store.open("a").previous
    assert opened is not None
    assert not opened[:].any()
    at.unlink()
    add_previous(plan, store, [case], {"a": file}, processes=1)
    assert at.exists()


def test_a_changed_byte_makes_it_again(tmp_path: Path, case: Case) -> None:
    plan, file = cascade(), tmp_path / "a.nii.gz"
    store = stored(plan, case, tmp_path / "cases")
    write_scan(file, found_before())
    add_previous(plan, store, [case], {"a": file}, processes=1)
    for name in ("previous.b2nd", "previous.json"):
        path = tmp_path / "cases" / "a" / name
        whole = path.read_bytes()
        for at in np.random.default_rng(0).integers(len(whole) - 2, size=20):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            status = file.stat()
            assert not store.has_previous("a", (status.st_size, status.st_mtime_ns))
        add_previous(plan, store, [case], {"a": file}, processes=1)
        assert path.read_bytes() == whole


def test_a_case_that_is_preprocessed_again_loses_it(tmp_path: Path, case: Case) -> None:
    plan, file = cascade(), tmp_path / "a.nii.gz"
    store = stored(plan, case, tmp_path / "cases")
    write_scan(file, found_before())
    add_previous(plan, store, [case], {"a": file}, processes=1)
    preprocess_case(plan, store, case)
    status = file.stat()
    assert not store.has_previous("a", (status.st_size, status.st_mtime_ns))
    assert store.open("a").previous is None


def test_one_on_another_grid_is_refused(tmp_path: Path, case: Case) -> None:
    plan, file = cascade(), tmp_path / "a.nii.gz"
    store = stored(plan, case, tmp_path / "cases")
    write_scan(file, found_before(), spacing_mm=(1, 1, 2))
    with pytest.raises(DataError, match=r"a\.nii\.gz: .*a\.nii\.gz: .* 1 mm"):
        add_previous(plan, store, [case], {"a": file}, processes=1)
    assert store.open("a").previous is None


def test_a_damaged_one_is_named(tmp_path: Path, case: Case) -> None:
    plan, file = cascade(), tmp_path / "a.nii.gz"
    store = stored(plan, case, tmp_path / "cases")
    write_scan(file, found_before())
    add_previous(plan, store, [case], {"a": file}, processes=1)
    (tmp_path / "cases" / "a" / "previous.b2nd").write_bytes(b"no array")
    with pytest.raises(AutosegError, match=r"a is damaged"):
        store.open("a")
