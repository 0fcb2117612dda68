"""The steps in any order against a plain implementation: one after the other, on floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoseg.image.image import Image
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Clip, CropToNonzero, Resample, Rescale, ZScore
from autoseg.preprocessing.resample import axis_orders, resample_label, resampled_shape
from autoseg.preprocessing.steps import prepare, to_classes
from tests.making import grid, tiny_plan
from tests.preprocessing.resizing import one_axis_after_another

SPACING_MM, TARGET_MM = (0.8, 1.0, 3.5), [1.3, 0.7, 2.0]

# The windows leave a good part of any range: a sliver of it would be stretched, errors and all.
STEPS: list[dict[str, Any]] = [
    {"step": "crop_to_nonzero"},
    {"step": "clip", "window": [-0.7, 60]},
    {"step": "clip", "window": [-40.5, 0.8], "channel": 1},
    {"step": "rescale"},
    {"step": "rescale", "range": [-3, 200], "whole_numbers": True, "channel": 0},
    {"step": "z_score"},
    {"step": "z_score", "nonzero": True},
    {"step": "z_score", "mean": 12.5, "std": 3, "channel": 1},
    {"step": "z_score", "mean": 7},
]
steps = st.lists(st.sampled_from(STEPS), max_size=4)


def plain(plan: Plan, image: Image, label: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Image and label after the steps, each done to the whole scan as floats."""
    values = np.array(image.array, np.float32)
    classes = to_classes(plan, label)
    nonzero = (values != 0).any(axis=0)
    spacing = image.geometry.spacing_mm
    for step in plan.preprocessing:
        if isinstance(step, CropToNonzero):
            occupied = np.nonzero((values != 0).any(axis=0))
            if occupied[0].size:
                box = tuple(slice(at.min(), at.max() + 1) for at in occupied)
                values, classes, nonzero = values[:, *box], classes[box], nonzero[box]
        elif isinstance(step, Resample):
            target = plan.target_spacing_of(spacing)
            shape = resampled_shape(values.shape[1:], spacing, target, step.rounding)
            orders = axis_orders(step.image_order, spacing, target, step.anisotropy)
            values = np.stack(
                [
                    one_axis_after_another(one, shape, orders).clip(one.min(), one.max())
                    for one in values
                ]
            ).astype(np.float32)
            orders = axis_orders(step.label_order, spacing, target, step.anisotropy)
            classes = resample_label(classes, shape, orders, step.label_ties)
            nonzero = resample_label(nonzero, shape, (0, 0, 0))
        else:
            for index in range(len(values)) if step.channel is None else [step.channel]:
                values[index] = plainly(step, values[index], nonzero)
    return values, classes


def plainly(
    step: Clip | Rescale | ZScore, values: NDArray[Any], nonzero: NDArray[Any]
) -> NDArray[Any]:
    if isinstance(step, Clip):
        return values.clip(*step.window)
    if isinstance(step, Rescale):
        low, high, (start, stop) = float(values.min()), float(values.max()), step.range
        scaled: NDArray[Any] = (values - low) / (high - low or 1.0) * (stop - start) + start
        return scaled.round() if step.whole_numbers else scaled
    inside = nonzero if step.nonzero and nonzero.any() else np.ones_like(nonzero)
    mean = float(values[inside].mean(dtype=float)) if step.mean is None else step.mean
    std = float(values[inside].std(dtype=float)) if step.std is None else step.std
    scored: NDArray[Any] = np.where(inside, (values - mean) / (std or 1.0), values)
    return scored


def make_plan(before: list[Any], resample: bool, after: list[Any]) -> Plan:
    after = [step for step in after if step["step"] != "crop_to_nonzero"]  # is refused there
    middle = [{"step": "resample", "rounding": "down"}] if resample else []
    return tiny_plan(
        channels=["CT", "PET"],
        preprocessing=[*before, *middle, *after],
        target_spacing_mm=TARGET_MM,
    )


@settings(max_examples=60, deadline=None)
@given(
    steps,
    st.booleans(),
    steps,
    st.sampled_from([np.int16, np.uint8, np.float32]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_any_order_of_steps_gives_what_plain_steps_give(
    before: list[Any], resample: bool, after: list[Any], dtype: Any, turned: bool, seed: int
) -> None:
    plan = make_plan(before, resample, after)
    rng = np.random.default_rng(seed)
    array = np.zeros((2, 7, 8, 6), dtype)
    array[:, 1:6, 2:8, :5] = rng.integers(0 if dtype == np.uint8 else -100, 120, (2, 5, 6, 5))
    label = rng.integers(0, 3, (7, 8, 6)).astype(np.uint8)
    expected, classes = plain(plan, Image(array, grid((7, 8, 6), SPACING_MM)), label)
    if turned:  # as a file is read
        array, label = array.transpose(0, 3, 2, 1).copy().transpose(0, 3, 2, 1), label.T.copy().T
    found = prepare(plan, Image(array, grid((7, 8, 6), SPACING_MM)), label)
    assert found.image.dtype == np.float32
    assert found.image.flags.c_contiguous
    # A value half way between two whole numbers may be rounded to either of them.
    tolerance = 2e-2 if any_rounding(plan) else 1e-4
    assert np.abs(found.image - expected).max() <= tolerance * max(1, np.abs(expected).max())
    assert (np.asarray(found.label) == classes).all()


def any_rounding(plan: Plan) -> bool:
    return any(isinstance(step, Rescale) and step.whole_numbers for step in plan.preprocessing)


@pytest.mark.parametrize("resample", [False, True])
def test_small_integers_give_the_same_bits_as_floats(resample: bool) -> None:
    before = [
        {"step": "clip", "window": [-500.25, 900.5]},
        {"step": "rescale", "range": [0, 255], "whole_numbers": True},
    ]
    plan = make_plan(before, resample, [{"step": "z_score"}])
    array = np.random.default_rng(0).integers(-1024, 3000, (2, 20, 30, 9)).astype(np.int16)
    where = grid((20, 30, 9), SPACING_MM)
    small = prepare(plan, Image(array, where))
    floats = prepare(plan, Image(array.astype(np.float32), where))
    assert small.image.tobytes() == floats.image.tobytes()
