from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.common.errors import PlanError
from autoseg.networks.unet import build_network
from autoseg.plan.plan import Plan
from autoseg.planner.budget import (
    FEW_CASES,
    START_SECONDS,
    STEPS_FOR_THE_PATCH,
    Overhead,
    Timing,
    budget_layer,
    expected_overhead,
    parse_seconds,
    short_recipe,
)
from autoseg.planner.overrides import Layer, complete, merge, stack
from autoseg.prediction.sliding_window import count_tiles
from tests.making import TINY, tiny_plan
from tests.planner.making import fingerprint

NETWORK = TINY["network"] | {"features": [32, 64]}
SAMPLING = {"patch_size": [8, 8, 8], "batch_size": 8}
RULES = complete(TINY | {"network": NETWORK, "sampling": SAMPLING}, "the rules")
OVERHEAD = Overhead(cases=10, patches=50)
MANY = FEW_CASES + 1


def build(*layers: Layer) -> Plan:
    return stack(RULES, {}, layers, "default")


def device(seconds: float, seen: list[Plan] | None = None) -> Callable[[Plan], Timing]:
    """A device with this time per step, feature map of the first stage and patch."""

    def measure(plan: Plan) -> Timing:
        if seen is not None:
            seen.append(plan)
        step = seconds * plan.network.features[0] * plan.sampling.batch_size
        return Timing(step, step / 5, 0.5, "fake")

    return measure


def plan_for(budget: float, seconds: float, overhead: Overhead = OVERHEAD) -> Plan:
    return build(budget_layer(budget, build(), lambda _: overhead, build, device(seconds)))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("5m", 300.0),
        ("1.5h", 5400.0),
        ("2d", 172800.0),
        (" 20 ", 20.0),
        ("0.5m", 30.0),
        ("5 minutes", 300.0),
        ("1h 30min", 5400.0),
        ("2 Hours, 5 min", 7500.0),
    ],
)
def test_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m",
        "5 minits",
        "1h30",
        "5mm",
        "-5m",
        "1e3",
        ".5h",
        "1,5h",
        "19s",
        "0",
        "nan",
        "inf",
        "9" * 400,
    ],
)
def test_bad_seconds(text: str) -> None:
    with pytest.raises(PlanError, match=r"^--time-budget .*20s"):
        parse_seconds(text)


@given(st.floats(30, 40_000), st.floats(1e-6, 1.0), st.integers(1, 40), st.integers(0, 300))
@settings(deadline=None, max_examples=25)
def test_the_plan_fits_the_budget(budget: float, seconds: float, cases: int, patches: int) -> None:
    overhead = Overhead(cases, patches)
    narrowest = seconds * 8 * 2
    spent = START_SECONDS + cases * 0.5 + patches * narrowest / 5
    if 0.95 * budget - spent < narrowest:
        with pytest.raises(PlanError, match=r"\bat least\b"):
            plan_for(budget, seconds, overhead)
        return
    plan = plan_for(budget, seconds, overhead)
    timing = device(seconds)(plan)
    steps = plan.training.epochs * plan.training.steps_per_epoch
    used = START_SECONDS + cases * timing.case_seconds + patches * timing.patch_seconds
    assert used + steps * timing.step_seconds <= budget
    assert plan.training.seconds == budget
    assert 1 <= plan.training.epochs <= 30
    assert set(plan.network.features) <= set(range(8, 65, 8))


def test_width_falls_with_the_budget() -> None:
    choices = ((36_000, 0.004), (600, 0.004), (120, 0.004), (30, 0.02))
    widths = [plan_for(*choice).network.features for choice in choices]
    assert widths[0] == (32, 64)
    assert widths[-1] == (8, 16)
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) >= 3


def test_the_batch_grows_on_a_fast_device_up_to_that_of_the_rules() -> None:
    batches = [plan_for(600, seconds).sampling.batch_size for seconds in (1e-3, 2e-4, 1e-5)]
    assert batches[0] == 2
    assert batches == sorted(batches)
    assert batches[-1] == 8


def test_a_batch_of_one_is_kept() -> None:
    rules = RULES | {"sampling": RULES["sampling"] | {"batch_size": 1}}

    def of_one(*layers: Layer) -> Plan:
        return stack(rules, {}, layers, "default")

    layer = budget_layer(600, of_one(), lambda _: OVERHEAD, of_one, device(1e-6))
    assert of_one(layer).sampling.batch_size == 1


def test_nothing_is_measured_twice_and_everything_is_recorded() -> None:
    seen: list[Plan] = []
    layer = budget_layer(600, build(), lambda _: OVERHEAD, build, device(1e-5, seen))
    chosen = [(plan.network.features, plan.sampling.batch_size) for plan in seen]
    assert len(set(chosen)) == len(chosen)
    tried = layer.values["measured"]["tried"]
    assert [(tuple(t["features"]), t["batch_size"]) for t in tried] == chosen
    assert all(t["device"] == "fake" and t["case_seconds"] == 0.5 for t in tried)
    assert layer.values["measured"]["seconds"] == 600


STAGES = {
    "features": [32, 64, 128, 256],
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    "kernels": [[3, 3, 3]] * 4,
    "blocks_encoder": [2] * 4,
    "blocks_decoder": [2] * 3,
}
OF_A_CASE = (160, 160, 60)  # voxels, of 1 x 1 x 3 mm


def coarse_plan(
    kept: Callable[[float], float],
    *users: Layer,
    step_seconds: float = 2e-6,
    disturb: Callable[[], float] = lambda: 1.0,
) -> Plan:
    """The plan for two minutes; `kept`: spacing along x -> Dice of the labels there."""
    changes = {
        "sampling": {"patch_size": [160, 160, 56], "batch_size": 2},
        "inference": {"overlap": [80, 80, 28]},
        "target_spacing_mm": [1.0, 1.0, 3.0],
        "preprocessing": [{"step": "resample"}],
        "network": RULES["network"] | STAGES,
    }
    rules = complete(merge(RULES, changes), "the rules")

    def made(*layers: Layer) -> Plan:
        evidence = {"target_spacing_mm": ("median voxel size", "")}
        return stack(rules, evidence, [*layers, *users], "default")

    def measure(plan: Plan) -> Timing:
        voxels = math.prod(plan.sampling.patch_size)
        along_x = plan.target_spacing_mm[0] or 0
        return Timing(disturb() * step_seconds * voxels, 1e-3, 1e-3, "fake", kept(along_x))

    return made(budget_layer(120, made(), lambda _: Overhead(4, 4), made, measure))


def test_a_coarser_grid_shows_more_of_a_large_case() -> None:
    plan = coarse_plan(lambda mm: 0.99)
    x, y, z = plan.target_spacing_of((1.0, 1.0, 3.0))
    assert x == y > 1
    assert z >= 3
    assert plan.training.steps >= STEPS_FOR_THE_PATCH
    seen = math.prod(plan.sampling.patch_size) * x * y * z
    assert seen > 0.2 * 3 * math.prod(OF_A_CASE)
    tried = [each["target_spacing_mm"] for each in plan.measured["tried"]]
    assert {z for x, _, z in tried if x < 3} == {3.0}  # the coarse axis waits
    build_network(plan)


def test_the_grid_stays_as_fine_as_the_labels_need() -> None:
    plan = coarse_plan(lambda mm: 0.99 if mm < 1.5 else 0.8)
    assert plan.target_spacing_mm[0] == pytest.approx(1 / 0.7)
    assert coarse_plan(lambda mm: 0.99 if mm == 1 else 0.8).target_spacing_mm[0] == 1.0


def test_a_spacing_that_was_asked_for_is_kept() -> None:
    plan = coarse_plan(lambda mm: 0.99, Layer("overrides", {"target_spacing_mm": [1.0, 1.0, 3.0]}))
    assert plan.target_spacing_mm == (1.0, 1.0, 3.0)
    assert plan.sampling.patch_size < (80, 80, 56)


def test_a_fast_device_needs_no_coarser_grid() -> None:
    plan = coarse_plan(lambda mm: 0.99, step_seconds=1e-9)
    assert plan.target_spacing_mm == (1.0, 1.0, 3.0)
    assert plan.sampling.patch_size == (160, 160, 56)


def test_a_disturbed_measurement_is_repeated() -> None:
    """A smaller patch that seems slower than a larger one was measured beside other work."""
    disturbed = iter([1.0, 100.0])
    quiet = coarse_plan(lambda mm: 0.99)
    noisy = coarse_plan(lambda mm: 0.99, disturb=lambda: next(disturbed, 1.0))
    assert noisy.sampling == quiet.sampling
    assert noisy.training.steps == quiet.training.steps


def test_too_small_a_budget() -> None:
    with pytest.raises(PlanError, match=r"\b30 s\b"):
        plan_for(30, 0.001, Overhead(cases=50, patches=0))


def test_a_slow_device_gets_smaller_patches_that_fit_the_strides() -> None:
    changes = {"sampling": {"patch_size": [64, 112, 128]}, "inference": {"overlap": [32, 56, 64]}}
    rules = complete(merge(RULES, changes | {"network": RULES["network"] | STAGES}), "the rules")

    def large(*layers: Layer) -> Plan:
        return stack(rules, {}, layers, "default")

    def measure(plan: Plan) -> Timing:
        return Timing(1e-6 * math.prod(plan.sampling.patch_size), 0.1, 0.1, "fake")

    plans = []
    for seconds in (3600, 80, 40):
        layer = budget_layer(seconds, large(), lambda _: OVERHEAD, large, measure)
        plans.append(large(layer))
    volumes = [math.prod(plan.sampling.patch_size) for plan in plans]
    assert plans[0].sampling.patch_size == (64, 112, 128)
    assert volumes[0] > volumes[1] > volumes[2]
    assert all(min(plan.sampling.patch_size) >= 24 for plan in plans)
    for plan in plans:
        assert plan.inference.overlap == tuple(n // 2 for n in plan.sampling.patch_size)
    with torch.inference_mode():
        logits = build_network(plans[2])(torch.zeros(1, 1, *plans[2].sampling.patch_size))
    assert logits[0].shape[2:] == plans[2].sampling.patch_size


@pytest.mark.parametrize(
    ("shape", "spacing", "changes"),
    [
        ((8, 8, 8), (1, 1, 1), {}),
        ((20, 30, 11), (1, 1, 1), {}),
        ((9, 12, 5), (2.0, 1.0, 3.0), {"inference": {"overlap": [0, 7, 3]}}),
        ((3, 3, 3), (1, 1, 1), {}),
    ],
)
def test_expected_patches_are_those_that_prediction_takes(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], changes: dict[str, Any]
) -> None:
    plan = tiny_plan(splits={"folds": 3}, **changes)
    data = fingerprint(shape=shape, spacing_mm=spacing, cases=6)
    resampled = [round(n * s) for n, s in zip(shape, spacing, strict=True)]
    one = count_tiles(resampled, plan.sampling.patch_size, plan.inference.overlap)
    assert expected_overhead(data, plan) == Overhead(6, 2 * one)


def test_slices_are_predicted_one_by_one() -> None:
    flat = {"patch_size": [16, 16, 1]}
    network = TINY["network"] | {"strides": [[1, 1, 1], [2, 2, 1]]}
    plan = tiny_plan(
        sampling=flat,
        network=network,
        inference={"overlap": [0, 0, 0]},
        target_spacing_mm=[2.0, 2.0, None],
        splits={"folds": 2},
    )
    data = fingerprint(shape=(32, 32, 11), spacing_mm=(1.0, 1.0, 7.0), cases=4)
    assert expected_overhead(data, plan) == Overhead(4, 2 * 11)


def test_the_short_recipe_is_for_short_runs() -> None:
    assert short_recipe(tiny_plan(), 12 * 3600, MANY, mirror=True) is None
    layer = short_recipe(tiny_plan(), 60, MANY, mirror=True)
    assert layer is not None
    plan = stack(RULES, {}, [layer], "default")
    assert plan.training.optimizer.optimizer == "adam"
    assert plan.inference.mirror_axes == ()


def test_flat_patches_are_rotated_in_their_plane_only() -> None:
    network = TINY["network"] | {"strides": [[1, 1, 1], [2, 2, 1]]}
    flat = tiny_plan(
        sampling={"patch_size": [16, 16, 4]}, inference={"overlap": [8, 8, 2]}, network=network
    )
    layer = short_recipe(flat, 60, MANY, mirror=True)
    assert layer is not None
    assert layer.values["augmentation"][0]["rotation_degrees"] == [[0, 0], [0, 0], [-20, 20]]


def test_partly_annotated_cases_are_not_mixed() -> None:
    rules = tiny_plan(annotated={"a": ["organ"]}, augmentation=[{"transform": "spatial"}])
    layer = short_recipe(rules, 60, FEW_CASES, mirror=True)
    assert layer is not None
    assert "mix_probability" not in layer.values["sampling"]


@pytest.mark.parametrize("mirror", [False, True])
def test_few_cases_are_varied_more(mirror: bool) -> None:
    transforms = [{"transform": "spatial"}, {"transform": "gamma"}, {"transform": "mirror"}]
    changes = {"augmentation": transforms, "inference": {"mirror_axes": [0, 1, 2]}}
    rules = tiny_plan(orientation="ARS", **changes)
    many, few = (short_recipe(rules, 60, count, mirror) for count in (MANY, FEW_CASES))
    assert many is not None
    assert few is not None
    assert many.values["network"]["norm"] == "batch"
    assert "network" not in few.values  # the rules' norm
    assert few.values["training"] == many.values["training"]
    spatial, *others = few.values["augmentation"]
    assert spatial["elastic_probability"] > 0
    assert few.values["sampling"]["mix_probability"] > 0
    assert "mix_probability" not in many.values["sampling"]
    assert [each["transform"] for each in others] == ["gamma"] + ["mirror"] * mirror
    assert [each["axes"] for each in others[1:]] == [[1]] * mirror  # from side to side
    no_sides = short_recipe(tiny_plan(orientation=None, **changes), 60, FEW_CASES, mirror=True)
    assert no_sides is not None
    assert [each["transform"] for each in no_sides.values["augmentation"]] == ["spatial", "gamma"]
    plan = stack(RULES, {}, [few], "default")
    assert plan.inference.mirror_axes == ()
    assert plan.provenance["augmentation"].evidence == f"{FEW_CASES} cases"
