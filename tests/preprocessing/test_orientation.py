"""A scan has one preprocessed case, in whatever order its axes are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.dataset.task import Case
from autoseg.image.geometry import CODES
from autoseg.image.image import read_label
from autoseg.preprocessing.preprocess import add_previous, preprocess
from autoseg.preprocessing.steps import prepare
from autoseg.preprocessing.store import CaseStore
from tests.making import CASCADE, tiny_plan
from tests.prediction.orders import in_order, scan_in_order

CT = [
    {"step": "crop_to_nonzero"},
    {"step": "clip", "window": [-60, 900]},
    {"step": "z_score", "mean": 10.5, "std": 77.7},
    {"step": "resample", "anisotropy": 3.0},
]
MR = [{"step": "crop_to_nonzero"}, {"step": "z_score", "nonzero": True}, {"step": "resample"}]
PAPER = [{"step": "rescale"}, {"step": "resample", "rounding": "down"}, {"step": "z_score"}]
TARGET_MM = [1.3, 0.9, 2.1]
SIZE = (33, 26, 19)


def voxels(kind: str, channels: int = 1) -> Any:
    rng = np.random.default_rng(0)
    found = np.zeros((channels, *SIZE), kind)
    found[:, 2:, 1:-3, :-2] = 300 * rng.normal(size=(channels, 31, 22, 17))
    label = rng.integers(0, 3, SIZE).astype(np.uint8)
    return found, label


@pytest.mark.parametrize(("kind", "channels"), [("int16", 1), ("float32", 1), ("float32", 2)])
@pytest.mark.parametrize("steps", [CT, MR, PAPER, []])
def test_48_orders_have_one_preprocessed_case(steps: Any, kind: str, channels: int) -> None:
    names = [f"MR{index}" for index in range(channels)]
    plan = tiny_plan(
        preprocessing=steps, target_spacing_mm=TARGET_MM, orientation="RAS", channels=names
    )
    scan, label = voxels(kind, channels)
    expected = None
    for code in CODES if steps is CT else CODES[::5]:
        image = scan_in_order(scan, code)
        stored = sitk.GetArrayFromImage(in_order(label, code)).T
        found = prepare(plan, image, stored)
        expected = expected or found
        assert found.label is not None
        assert expected.label is not None
        assert np.array_equal(found.image, expected.image)
        assert np.array_equal(found.label, expected.label)
        assert (found.box, found.spacing_mm) == (expected.box, expected.spacing_mm)
        assert found.turn.triple(image.geometry.size) == found.geometry.size
        assert np.array_equal(
            found.turn.inverse().array(found.turn.array(image.array)), image.array
        )


@pytest.mark.parametrize("steps", [CT, MR, PAPER])
def test_a_scan_in_the_order_of_the_plan_is_prepared_as_without(steps: Any) -> None:
    scan, label = voxels("int16")
    image = scan_in_order(scan, "LAS")
    stored = sitk.GetArrayFromImage(in_order(label, "LAS")).T
    changes: dict[str, Any] = {"preprocessing": steps, "target_spacing_mm": TARGET_MM}
    old = prepare(tiny_plan(**changes), image, stored)
    new = prepare(tiny_plan(**changes, orientation="LAS"), image, stored)
    assert old.image.tobytes() == new.image.tobytes()
    assert old.label is not None
    assert new.label is not None
    assert old.label.tobytes() == new.label.tobytes()
    assert new.geometry == image.geometry


def test_a_mixed_training_set_is_stored_like_an_unmixed_one(tmp_path: Path) -> None:
    scan, label = voxels("int16")
    plan = tiny_plan(**CASCADE, preprocessing=CT, target_spacing_mm=TARGET_MM, orientation="LPS")
    stores = []
    for name, codes in (("one", ["LPS"] * 3), ("mixed", ["LPS", "PIR", "RAS"])):
        cases, before = [], {}
        for index, code in enumerate(codes):
            files = [tmp_path / name / f"{index}_{kind}.nii.gz" for kind in ("scan", "label")]
            files[0].parent.mkdir(exist_ok=True)
            sitk.WriteImage(in_order(scan[0] + index, code), str(files[0]))
            sitk.WriteImage(in_order(label, code), str(files[1]))
            cases.append(Case(str(index), (files[0],), files[1]))
            before[str(index)] = files[1]
            assert read_label(files[1])[0].shape == in_order(label, code).GetSize()
        store = CaseStore(tmp_path / name / "store", plan.preprocessing_id)
        preprocess(plan, cases, store, 1)
        add_previous(plan, store, cases, before, 1)
        stores.append(store)
    for index in range(3):
        one, mixed = (store.open(str(index)) for store in stores)
        assert one.previous is not None
        assert mixed.previous is not None
        assert np.array_equal(one.image[:], mixed.image[:])
        assert np.array_equal(one.label[:], mixed.label[:])
        assert np.array_equal(one.previous[:], mixed.previous[:])
        assert one.foreground.keys() == mixed.foreground.keys()
        assert stores[0].grid_of(str(index)) == stores[1].grid_of(str(index))


def test_the_orientation_decides_the_preprocessing() -> None:
    plans = [tiny_plan(orientation=code) for code in (None, "RAS", "LPS")]
    assert len({plan.preprocessing_id for plan in plans}) == 3
    assert tiny_plan().id == plans[0].id
