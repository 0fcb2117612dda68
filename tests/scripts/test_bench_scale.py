from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bench_scale import Axis, Row, exponent, faults, synthetic_task
from make_many_classes import make_task, regions_of

from autoseg.dataset.task import read_task
from autoseg.image.image import read_label

SIZES = (10, 20, 50, 100)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_is_that_of_the_growth_beyond_the_smallest(power: float) -> None:
    costs = [0.5 + 0.3 * (size - 10) ** power for size in SIZES]
    assert exponent(SIZES, costs, 0.1) == pytest.approx(power)


def test_hardly_any_growth_has_no_exponent() -> None:
    assert exponent(SIZES, [5.0, 5.1, 5.0, 5.3], 1.0) == 0.0


def test_noise_of_the_fixed_cost_does_not_look_like_growth() -> None:
    assert exponent((20, 125, 500, 2000), [4.9, 5.7, 12.8, 37.5], 1.0) == pytest.approx(
        1.03, abs=0.05
    )


def test_what_grows_too_fast_is_named() -> None:
    axis = Axis("tiny cases", SIZES, lambda folder, size: None)
    rows = [Row("tiny cases", n, "plan", n**2 / 50, n**2 / 50, 0.1) for n in SIZES]
    rows += [Row("tiny cases", n, "--resume, next step", 0.2 * n, 1.0, 0.1) for n in SIZES]
    rows += [Row("tiny cases", n, "evaluate", 1.0, n / 10, 0.1, page_mb=n / 2) for n in SIZES]
    found = list(faults([axis], rows))
    assert [text.partition(":")[0] for text in found] == [
        "plan",
        "--resume, next step",
        "evaluate",
    ]


def test_regions_fill_the_body_and_keep_the_organs() -> None:
    rng = np.random.default_rng(0)
    image = np.full((24, 24, 16), -1000.0)
    image[4:20, 3:21, 2:14] = rng.normal(50, 20, (16, 18, 12))
    organs = np.zeros(image.shape, np.uint16)
    organs[8:12, 8:12, 5:9] = 1
    found = regions_of(image, organs, 2, 12)
    assert set(np.unique(found)) == set(range(14))
    assert np.array_equal(found == 1, organs == 1)
    assert (found[4:20, 3:21, 2:14] > 0).mean() > 0.99
    assert np.array_equal(found, regions_of(image, organs, 2, 12))


def test_a_task_has_as_many_classes_as_wanted(tmp_path: Path) -> None:
    synthetic_task(tmp_path / "raw", 3, (24, 20, 16), 2)
    for classes, first in ((9, "part_001"), (2, "region_001")):
        make_task(tmp_path / "raw", out := tmp_path / f"out_{classes}", classes, 2)
        task = read_task(out)
        assert [case.name for case in task.cases] == ["case_0000", "case_0001"]
        assert len(task.labels) == 1 + classes
        assert list(task.labels)[1] == first
        for case in task.cases:
            found, before = (
                read_label(folder / "labelsTr" / f"{case.name}.nii.gz")[0]
                for folder in (out, tmp_path / "raw")
            )
            assert ((found > 0) == (before > 0)).mean() > 0.99
            assert set(np.unique(found)) >= {0, 1, 2}
