from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.common import parallel
from autoseg.dataset.problems import errors_by_case
from autoseg.dataset.task import Task, find_task, read_task, without
from autoseg.fingerprint import Fingerprint, survey
from autoseg.fingerprint.statistics import IntensityStatistics, LabelStatistics
from autoseg.image.formats import stem_of
from autoseg.image.image import Image, read_image, read_label
from tests.dataset.making import HIPPOCAMPUS, V2, declare, write_case, write_scan

survey_module = importlib.import_module("autoseg.fingerprint.fingerprint")  # not the function


@pytest.fixture(scope="module")
def hippocampus() -> Task:
    task = read_task(HIPPOCAMPUS)
    return replace(task, cases=task.cases[:6])


def make_task(folder: Path, count: int = 5) -> Task:
    """Cases of 6 x 5 x 4 voxels with different noise; case 0 lies 100 above the others."""
    declare(folder, V2 | {"channel_names": {"0": "MRI"}})
    rng = np.random.default_rng(0)
    label = np.zeros((6, 5, 4), np.uint8)
    label[2:4, 2:4, 1:3] = 1
    for i in range(count):
        image = rng.integers(1, 50, size=label.shape) + 100 * (i == 0)
        write_case(folder, f"case{i}", image.astype(np.int16), label)
    return read_task(folder)


def test_golden_fingerprint_of_two_cases(tmp_path: Path) -> None:
    declare(tmp_path, V2)
    label = np.zeros((4, 2, 2), np.uint8)
    label[:2] = 1
    write_case(tmp_path, "low", np.full((4, 2, 2), 10, np.int16), label)
    write_case(tmp_path, "many", np.full((8, 2, 2), 30, np.int16), np.ones((8, 2, 2), np.uint8))
    found, problems = survey(read_task(tmp_path), processes=1)

    # both cases have the same weight, although one has twice the foreground
    assert found.foreground == (
        IntensityStatistics(
            mean=20.0, std=10.0, min=10.0, p00_5=10.0, median=20.0, p99_5=30.0, max=30.0
        ),
    )
    assert list(found.cases) == ["low", "many"]
    assert found.shapes_after_crop.tolist() == [[4, 2, 2], [8, 2, 2]]
    assert found.spacings_mm.tolist() == [[1.0, 1.0, 1.0]] * 2
    assert found.presence == dict.fromkeys(("low", "many"), frozenset({"tumour"}))
    assert found.median_spacing_mm == (1.0, 1.0, 1.0)
    assert found.relative_size_after_cropping == 1.0
    assert found.voxel_shares == {"background": 8 / 48, "tumour": 40 / 48}
    assert [problem.kind for problem in problems] == [
        *("too few cases", "rare label", "intensity scale"),
        *("constant scan", "constant scan"),
    ]


def test_golden_statistics_of_real_cases(hippocampus: Task) -> None:
    found, problems = survey(hippocampus, processes=1)
    assert problems == []
    case = found.cases["hippocampus_003"]
    assert case.shape == case.shape_after_crop == (34, 52, 35)
    assert case.orientation == "RAS"
    assert case.voxels == {0: 58527, 1: 1550, 2: 1803}
    assert case.labels == {
        "Anterior": LabelStatistics(volume_ml=1.55, components=1, extent_mm=(22.0, 17.0, 14.0)),
        "Posterior": LabelStatistics(volume_ml=1.803, components=1, extent_mm=(20.0, 25.0, 21.0)),
    }
    assert case.channels[0].scale == "other"
    assert case.channels[0].image.mean == 482.645
    assert case.channels[0].foreground is not None
    assert case.channels[0].foreground.median == 339.661


def test_the_same_bytes_with_any_number_of_processes(
    hippocampus: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "WORKER_START_SECONDS", 0.0)  # so few cases need no workers
    for processes in (1, 2):
        found, _ = survey(hippocampus, processes)
        found.save(tmp_path / f"{processes}.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert Fingerprint.load(tmp_path / "1.json") == found


def test_pooling_gives_each_case_the_same_weight(hippocampus: Task) -> None:
    found, _ = survey(hippocampus, processes=1)
    inside = [
        read_image(case.images).array[0][read_label(case.label)[0] > 0].astype(np.float64)
        for case in hippocampus.cases
    ]
    values = np.concatenate(inside)
    weights = np.concatenate([np.full(len(part), 1 / len(part)) for part in inside]) / len(inside)
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    low, median, high = values[order][np.searchsorted(below, (0.005, 0.5, 0.995))]
    mean = np.average(values, weights=weights)
    (pooled,) = found.foreground
    assert pooled is not None
    assert pooled.mean == pytest.approx(mean, rel=1e-5)
    std = np.average((values - mean) ** 2, weights=weights) ** 0.5
    assert pooled.std == pytest.approx(std, rel=1e-5)
    assert (pooled.min, pooled.max) == pytest.approx((values.min(), values.max()), rel=1e-5)
    assert pooled.median == pytest.approx(median, rel=1e-3)
    assert (pooled.p00_5, pooled.p99_5) == pytest.approx((low, high), rel=0.015)


def test_one_case_pools_to_itself(hippocampus: Task) -> None:
    found, _ = survey(replace(hippocampus, cases=hippocampus.cases[:1]), processes=1)
    (case,) = found.cases.values()
    alone = case.channels[0].foreground
    assert alone is not None
    assert found.foreground[0] is not None
    assert astuple(found.foreground[0]) == pytest.approx(astuple(alone), rel=1e-4)


def test_broken_cases_become_problems(tmp_path: Path) -> None:
    make_task(tmp_path, 7)
    images, labels = tmp_path / "imagesTr", tmp_path / "labelsTr"
    label = np.ones((6, 5, 4), np.uint8)
    whole = (images / "case1_0000.nii.gz").read_bytes()
    (images / "case1_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    (labels / "case1.nii.gz").write_bytes(b"")
    write_scan(labels / "case2.nii.gz", label, origin_mm=(0, 0, 7))
    write_scan(labels / "case3.nii.gz", label[:5])
    write_scan(labels / "case4.nii.gz", label * 2)
    shutil.copy(images / "case5_0000.nii.gz", images / "case6_0000.nii.gz")
    found, problems = survey(read_task(tmp_path), processes=1)
    assert list(found.cases) == ["case0", "case5", "case6"]
    assert [(problem.case, problem.kind, problem.file) for problem in problems] == [
        ("case1", "unreadable", "imagesTr/case1_0000.nii.gz"),
        ("case1", "unreadable", "labelsTr/case1.nii.gz"),
        ("case2", "geometry", "labelsTr/case2.nii.gz"),
        ("case3", "shape", "labelsTr/case3.nii.gz"),
        ("case4", "undeclared label", "labelsTr/case4.nii.gz"),
        ("case5", "duplicate image", ""),
    ]


def test_impossible_values_become_problems(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    image = np.ones((6, 5, 4), np.float32)
    image[0, 0, 0] = np.nan
    write_scan(task.cases[0].images[0], image)
    write_scan(task.cases[1].label, np.full((6, 5, 4), 0.5, np.float32))
    found, problems = survey(task, processes=1)
    assert list(found.cases) == ["case2", "case3", "case4"]
    assert [(problem.case, problem.kind) for problem in problems] == [
        ("case0", "impossible values"),
        ("case1", "impossible values"),
    ]
    assert "NaN" in problems[0].message
    assert "120 voxels" in problems[1].message
    assert "0.5" in problems[1].message


def test_scales_and_spacings_of_a_mixed_ct_set(tmp_path: Path) -> None:
    declare(tmp_path, V2)
    label = np.zeros((6, 5, 4), np.uint8)
    label[2:] = 1
    rng = np.random.default_rng(0)
    for i in range(6):
        low, high = [(-1000, 400), (0, 256)][i % 2]
        spacing_mm = (1.0, 1.0, 1.5 if i else 6.0)
        image = rng.integers(low, high, size=label.shape).astype(np.int16)
        write_scan(tmp_path / "imagesTr" / f"case{i}_0000.nii.gz", image, spacing_mm)
        write_scan(tmp_path / "labelsTr" / f"case{i}.nii.gz", label, spacing_mm)
    found, problems = survey(read_task(tmp_path), processes=1)
    scales = [case.channels[0].scale for case in found.cases.values()]
    assert scales == ["hounsfield", "0..255"] * 3
    assert [(problem.case, problem.kind) for problem in problems] == [
        ("", "intensity scale"),
        ("case0", "spacing outlier"),
    ]
    assert "case0, case2, case4)" in problems[0].message


def test_continuing_without_the_bad_cases(tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", 7)
    task.cases[3].label.write_bytes(b"")
    found, problems = survey(task, 1, tmp_path / "cache")
    bad = errors_by_case(problems)
    assert list(bad) == ["case3"]
    rest = without(task, bad)
    assert survey(rest, 1, tmp_path / "cache") == (found, [])
    assert [case.name for case in rest.cases] == list(found.cases)


def test_no_usable_case(tmp_path: Path) -> None:
    task = make_task(tmp_path, 2)
    for case in task.cases:
        case.label.write_bytes(b"")
    found, problems = survey(task, processes=1)
    assert found.cases == {}
    assert found.foreground == (None,)
    assert [problem.kind for problem in problems] == ["unreadable"] * 2 + ["too few cases"]


def test_no_foreground_anywhere(tmp_path: Path) -> None:
    task = make_task(tmp_path, 5)
    for case in task.cases:
        write_scan(case.label, np.zeros((6, 5, 4), np.uint8))
    found, problems = survey(task, processes=1)
    assert found.foreground == (None,)
    assert [problem.kind for problem in problems] == ["empty label map"] * 5 + ["absent label"]
    found.save(tmp_path / "fingerprint.json")
    assert Fingerprint.load(tmp_path / "fingerprint.json") == found


def test_a_second_survey_reads_no_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, cache = make_task(tmp_path / "task"), tmp_path / "cache"
    write_scan(task.cases[1].label, np.zeros((6, 5, 4), np.uint8))
    first = survey(task, 2, cache)
    monkeypatch.setattr(survey_module, "read_image", None)
    assert survey(task, 2, cache) == first
    assert [problem.case for problem in first[1]] == ["case1"]


def test_only_new_and_changed_cases_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "task", tmp_path / "cache"
    survey(make_task(folder), 1, cache)
    image = np.full((6, 5, 4), 7, np.int16)
    write_case(folder, "case9", image, np.ones((6, 5, 4), np.uint8))
    write_scan(folder / "imagesTr" / "case2_0000.nii.gz", np.append(image, image, axis=0))
    (cache / "case3.json").write_text("damaged")
    task = read_task(folder)
    read: list[str] = []

    def recording(paths: Sequence[Path], own_type: bool) -> Image:
        read.append(stem_of(paths[0]).removesuffix("_0000"))
        return read_image(paths, own_type)

    monkeypatch.setattr(survey_module, "read_image", recording)
    assert survey(task, 1, cache) == survey(task, 1)
    assert read[:3] == ["case2", "case3", "case9"]
    assert read[3:] == [case.name for case in task.cases]


def test_a_changed_declaration_is_measured_again(tmp_path: Path) -> None:
    task, cache = make_task(tmp_path / "task"), tmp_path / "cache"
    survey(task, 1, cache)
    renamed = replace(task, labels={"background": (0,), "cyst": (1,)})
    assert survey(renamed, 1, cache)[0].presence["case0"] == {"cyst"}
    ignoring = replace(task, labels={"background": (0,), "cyst": (2,)}, ignore_label=1)
    assert survey(ignoring, 1, cache) == survey(ignoring, 1)


SHARED = Path(os.environ.get("AUTOSEG_TEST_DATA", HIPPOCAMPUS.parents[3] / "shared" / "data"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="$AUTOSEG_TEST_DATA names no folder of tasks")
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("Task904_HippocampusDirty", ["missing image", "missing label", "missing image"]),
        ("Task011_SarcomaMR", []),
    ],
)
def test_real_sets(name: str, kinds: list[str]) -> None:
    task, problems = find_task(SHARED / name)
    found, more = survey(task, processes=1)
    assert [problem.kind for problem in [*problems, *more]] == kinds
    assert list(found.cases) == [case.name for case in task.cases]
