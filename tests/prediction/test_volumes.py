from __future__ import annotations

import numpy as np

from autoseg.prediction.output import volumes
from tests.making import grid, tiny_plan
from tests.prediction.scans import LABELS, PLAN


def test_volumes_and_shares_golden() -> None:
    label = np.zeros((10, 10, 10), np.uint8)
    label[0] = 1  # 100 voxels of 3 cubic millimetres
    label[1, :5] = 2  # 50
    label[2, 0] = 3  # 10
    geometry = grid((10, 10, 10), (0.5, 2.0, 3.0))
    assert volumes(label, geometry, PLAN) == {
        "volume_ml": {"lungs": 0.45, "infection": 0.03},
        "share": {"infection": 0.0625},
    }
    assert "share" not in volumes(label, geometry, tiny_plan(labels=LABELS))


def test_an_empty_segmentation_has_no_share() -> None:
    nothing = volumes(np.zeros((4, 4, 4), np.uint8), grid((4, 4, 4)), PLAN)
    assert nothing == {
        "volume_ml": {"lungs": 0.0, "infection": 0.0},
        "share": {"infection": None},
    }


def test_arrays_need_not_be_contiguous() -> None:
    label = np.random.default_rng(0).integers(0, 4, (7, 6, 5)).astype(np.uint16)
    turned = label.transpose(2, 0, 1)[::-1]
    assert volumes(turned, grid(turned.shape), PLAN) == volumes(label, grid(label.shape), PLAN)
