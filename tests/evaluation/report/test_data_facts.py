from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoseg.dataset.task import read_task
from autoseg.evaluation.report.facts import data_rows, intensity_rows, label_rows
from autoseg.fingerprint import Fingerprint, survey
from autoseg.image.image import read_image, read_label
from tests.evaluation.scores import HIPPOCAMPUS

CASES = 3


@pytest.fixture(scope="module")
def fingerprint() -> Fingerprint:
    task = read_task(HIPPOCAMPUS)
    return survey(replace(task, cases=task.cases[:CASES]), 1)[0]


def test_what_the_data_is(fingerprint: Fingerprint) -> None:
    task = read_task(HIPPOCAMPUS)
    shapes = [read_image(case.images).geometry.size for case in task.cases[:CASES]]
    x, y, z = (sorted(axis) for axis in zip(*shapes, strict=True))
    rows = dict(data_rows(fingerprint))
    assert rows["cases"] == "3"
    assert rows["channels"] == "MRI"
    assert rows["image size in voxels (x, y, z): median"] == f"{x[1]} x {y[1]} x {z[1]}"
    ranges = [f"{a[0]}–{a[-1]}" if a[0] != a[-1] else str(a[0]) for a in (x, y, z)]  # noqa: RUF001
    assert rows["image size in voxels: range"] == " x ".join(ranges)
    assert rows["voxel spacing in mm: range"] == "1 x 1 x 1"


def test_labels(fingerprint: Fingerprint) -> None:
    maps = [read_label(case.label)[0] for case in read_task(HIPPOCAMPUS).cases[:CASES]]
    voxels = [np.count_nonzero(each == 1) for each in maps]
    share = 100 * sum(voxels) / sum(each.size for each in maps)
    header, anterior, posterior = label_rows(fingerprint)
    assert anterior[:3] == ("Anterior", "1", "3")
    assert anterior[3] == f"{share:.3g} %"
    assert anterior[4] == f"{sorted(voxels)[1] / 1000:.3g}"
    assert posterior[0] == "Posterior"
    assert len(header) == len(anterior)


def test_intensities(fingerprint: Fingerprint) -> None:
    header, row = intensity_rows(fingerprint)
    assert row[0] == "MRI"
    low, middle, high = (float(row[header.index(name)]) for name in ("min", "median", "max"))
    assert low < middle < high
    assert intensity_rows(replace(fingerprint, foreground=(None,)))[1] == ("MRI", *"-------")
