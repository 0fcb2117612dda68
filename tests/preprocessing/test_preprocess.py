from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from autoseg.common import parallel
from autoseg.common.errors import AutosegError, DataError
from autoseg.dataset.task import Case, read_task
from autoseg.image.image import read_image, read_label
from autoseg.plan.plan import Plan
from autoseg.preprocessing.preprocess import preprocess
from autoseg.preprocessing.steps import prepare
from autoseg.preprocessing.store import STATS, CaseStore
from tests.dataset.making import HIPPOCAMPUS, write_4d, write_case, write_scan
from tests.dicom_series import write_series
from tests.making import tiny_plan

STEPS = [{"step": "crop_to_nonzero"}, {"step": "z_score"}, {"step": "resample"}]
PLAN = tiny_plan(preprocessing=STEPS, target_spacing_mm=[1.0, 1.3, 0.8])


def make_cases(folder: Path, *names: str) -> list[Case]:
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        image = rng.normal(100, 30, (8, 9, 10)).astype(np.float32)
        write_case(folder, name, image, rng.integers(0, 3, (8, 9, 10)).astype(np.uint8))
    return [
        Case(name, (folder / f"imagesTr/{name}_0000.nii.gz",), folder / f"labelsTr/{name}.nii.gz")
        for name in names
    ]


def store_in(folder: Path, plan: Plan = PLAN) -> CaseStore:
    return CaseStore(folder / "cases", plan.preprocessing_id)


def contents(store: CaseStore) -> dict[str, bytes]:
    files = sorted(f for f in store.folder.rglob("*") if f.is_file() and f.name != STATS)
    return {str(path.relative_to(store.folder)): path.read_bytes() for path in files}


def test_stores_what_the_steps_make_of_real_scans(tmp_path: Path) -> None:
    cases = list(read_task(HIPPOCAMPUS).cases[:2])
    store = store_in(tmp_path)
    assert preprocess(PLAN, cases, store, processes=1) == 2
    for case in cases:
        expected = prepare(PLAN, read_image(case.images), read_label(case.label)[0])
        stored = store.open(case.name)
        assert (stored.image[:] == expected.image).all()
        assert (stored.label[:] == expected.label).all()
        assert sorted(stored.foreground) == [1, 2]


def test_the_second_call_does_nothing(tmp_path: Path) -> None:
    cases = make_cases(tmp_path, "a", "Größe 2")
    store = store_in(tmp_path)
    assert preprocess(PLAN, cases, store, processes=1) == 2
    before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}
    assert preprocess(PLAN, cases, store, processes=1) == 0
    assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")} == before
    assert sorted(path.name for path in store.folder.iterdir()) == ["Größe 2", "a"]


def test_only_changed_cases_are_made_again(tmp_path: Path) -> None:
    cases = make_cases(tmp_path, "a", "b")
    store = store_in(tmp_path)
    preprocess(PLAN, cases, store, processes=1)
    status = cases[1].label.stat()
    os.utime(cases[1].label, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert preprocess(PLAN, cases, store, processes=1) == 1
    other = tiny_plan(preprocessing=STEPS[:1])
    assert preprocess(other, cases, store_in(tmp_path, other), processes=1) == 2


def test_a_damaged_case_is_reported_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = make_cases(tmp_path, "a", "b c", "d")
    store = store_in(tmp_path)
    preprocess(PLAN, cases, store, processes=1)
    before = contents(store)
    path = store.folder / "b c" / "image.b2nd"
    content = path.read_bytes()
    path.write_bytes(content[:-60] + bytes([content[-60] ^ 1]) + content[-59:])
    capsys.readouterr()
    assert preprocess(PLAN, cases, store, processes=1) == 1
    assert contents(store) == before
    (message,) = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert message.startswith(f"{path.parent} ")
    assert preprocess(PLAN, cases, store, processes=1) == 0


def test_a_case_of_a_version_without_checksums_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = make_cases(tmp_path, "a", "b")
    store = store_in(tmp_path)
    preprocess(PLAN, cases, store, processes=1)
    (store.folder / "b" / "checksums.json").unlink()
    assert preprocess(PLAN, cases, store, processes=1) == 1
    assert "damaged" not in capsys.readouterr().err


def test_a_changed_slice_of_a_dicom_folder_makes_its_case_again(tmp_path: Path) -> None:
    (case,) = make_cases(tmp_path, "a")
    array = np.random.default_rng(0).integers(0, 900, (8, 9, 10)).astype(np.int16)
    write_series(tmp_path / "series", array)
    where = read_image([tmp_path / "series"]).geometry
    write_scan(
        case.label,
        np.ones_like(array, np.uint8),
        where.spacing_mm,
        where.origin_mm,
        where.direction,
    )
    case = Case("a", (tmp_path / "series",), case.label)
    store = store_in(tmp_path)
    assert preprocess(PLAN, [case], store, processes=1) == 1
    assert preprocess(PLAN, [case], store, processes=1) == 0
    folder = (tmp_path / "series").stat()
    first = min((tmp_path / "series").iterdir())
    os.utime(first, ns=(folder.st_atime_ns, first.stat().st_mtime_ns + 10**9))
    os.utime(tmp_path / "series", ns=(folder.st_atime_ns, folder.st_mtime_ns))
    assert preprocess(PLAN, [case], store, processes=1) == 1


def test_two_processes_give_the_same_bytes_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = make_cases(tmp_path, "a", "b", "c")
    one, two = store_in(tmp_path / "one"), store_in(tmp_path / "two")
    preprocess(PLAN, cases, one, processes=1)
    monkeypatch.setattr(parallel, "WORKER_START_SECONDS", 0.0)
    assert preprocess(PLAN, cases, two, processes=2) == 3
    assert len(contents(one)) == 15
    assert contents(one) == contents(two)


def test_an_unreadable_case_is_named_and_the_others_stay(tmp_path: Path) -> None:
    cases = make_cases(tmp_path, "a", "bad one", "c")
    whole = cases[1].images[0].read_bytes()
    cases[1].images[0].write_bytes(whole[: len(whole) // 2])
    store = store_in(tmp_path)
    with pytest.raises(DataError, match="bad one_0000"):
        preprocess(PLAN, cases, store, processes=1)
    assert sorted(path.name for path in store.folder.iterdir()) == ["a"]  # no lock, no litter
    cases[1].images[0].write_bytes(whole)
    assert preprocess(PLAN, cases, store, processes=1) == 2


def test_an_unreadable_case_is_named_by_a_worker_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = make_cases(tmp_path, "a", "bad one")
    cases[1].images[0].write_bytes(b"")
    monkeypatch.setattr(parallel, "WORKER_START_SECONDS", 0.0)
    with pytest.raises(DataError, match="bad one_0000"):
        preprocess(PLAN, cases, store_in(tmp_path), processes=2)


def test_a_label_on_another_grid_is_refused(tmp_path: Path) -> None:
    (case,) = make_cases(tmp_path, "a")
    write_scan(case.label, np.zeros((8, 9, 10), np.uint8), spacing_mm=(1, 1, 2))
    with pytest.raises(
        DataError, match=r"labelsTr/a\.nii\.gz: .*imagesTr/a_0000\.nii\.gz: spacing"
    ):
        preprocess(PLAN, [case], store_in(tmp_path), processes=1)


def test_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    (case,) = make_cases(tmp_path, "a")
    write_4d(case.images[0], np.ones((2, 8, 9, 10), np.float32))
    with pytest.raises(DataError, match=r"a_0000\.nii\.gz: .*2 channels.* 1$"):
        preprocess(PLAN, [case], store_in(tmp_path), processes=1)


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    cases = make_cases(tmp_path, "a")
    store = store_in(tmp_path)
    (store.folder / ".tmp-99-a").mkdir(parents=True)
    preprocess(PLAN, cases, store, processes=1)
    assert [path.name for path in store.folder.iterdir()] == ["a"]


def test_a_workspace_that_cannot_be_written(tmp_path: Path) -> None:
    cases = make_cases(tmp_path, "a")
    store = store_in(tmp_path)
    store.folder.mkdir()
    (store.folder / "a").touch()  # stands where the case should go
    with pytest.raises(AutosegError, match="cannot store case a"):
        preprocess(PLAN, cases, store, processes=1)
