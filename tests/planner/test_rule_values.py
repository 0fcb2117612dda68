from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.fingerprint import Fingerprint
from autoseg.plan.plan import make_plan
from autoseg.planner.rule_values import Evidence, PlanValues, configurations
from autoseg.planner.rule_values import rule_values as rule_values_of
from tests.planner.making import FOREGROUND, LABELS, fingerprint


def rule_values(
    data: Fingerprint, planner: str = "default", configuration: str | None = None
) -> tuple[PlanValues, Evidence]:
    """What the rules choose for a configuration, the recommended one if none is named."""
    there = configurations(data, planner)
    return rule_values_of(data, there[configuration or next(iter(there))])


def steps(**figures: Any) -> list[dict[str, Any]]:
    values, _ = rule_values(fingerprint(**figures))
    found: list[dict[str, Any]] = values["preprocessing"]
    return found


RESAMPLE = {"step": "resample", "anisotropy": 3.0, "label_ties": "nearest"}
CROP = {"step": "crop_to_nonzero"}


def test_ct_is_normalised_with_the_figures_of_all_cases() -> None:
    assert steps() == [
        CROP,
        {"step": "clip", "window": [-958.5, 271.0], "channel": 0},
        {"step": "z_score", "channel": 0, "mean": -81.5, "std": 140.25},
        RESAMPLE,
    ]


def test_other_channels_are_normalised_per_case() -> None:
    assert steps(channels=("MRI",)) == [
        CROP,
        {"step": "z_score", "channel": 0, "nonzero": False},
        RESAMPLE,
    ]


def test_only_nonzero_voxels_are_normalised_if_cropping_removed_a_quarter() -> None:
    assert steps(channels=("T1", "CT"), shape_after_crop=(40, 56, 24)) == [
        CROP,
        {"step": "z_score", "channel": 0, "nonzero": True},
        {"step": "clip", "window": [-958.5, 271.0], "channel": 1},
        {"step": "z_score", "channel": 1, "mean": -81.5, "std": 140.25},
        RESAMPLE,
    ]


def test_special_channels() -> None:
    assert steps(channels=("noNorm", "rescale_to_0_1", "rgb_to_0_1"))[1:-1] == [
        {"step": "rescale", "channel": 1},
        {"step": "z_score", "channel": 2, "mean": 0.0, "std": 255.0},
    ]


def test_ct_without_foreground_is_normalised_per_case() -> None:
    assert steps(foreground=None)[1] == {"step": "z_score", "channel": 0, "nonzero": False}


def test_constant_ct_has_no_window() -> None:
    constant = replace(FOREGROUND, std=0.0, p00_5=7.0, p99_5=7.0)
    assert steps(foreground=constant)[1:-1] == [
        {"step": "z_score", "channel": 0, "mean": -81.5, "std": 1e-8}
    ]


def test_patch_network_and_overlap() -> None:
    values, evidence = rule_values(fingerprint())
    plan = make_plan(values, "the rules")
    assert plan.sampling.patch_size == (40, 56, 48)
    assert plan.inference.overlap == (20, 28, 24)
    assert plan.inference.mirror_axes == (0, 1, 2)
    assert plan.target_spacing_mm == (1.0, 1.0, 1.5)
    assert plan.network.features[:3] == (32, 64, 128)
    assert "1 x 1 x 1.5 mm" in evidence["target_spacing_mm"][1]
    for key in evidence:
        inner: Any = values
        for part in key.split("."):
            inner = inner[part]


def test_one_slice_gets_a_flat_patch() -> None:
    values, _ = rule_values(fingerprint(shape=(64, 64, 1), spacing_mm=(1.0, 1.0, 5.0)))
    plan = make_plan(values, "the rules")
    assert plan.sampling.patch_size == (64, 64, 1)
    assert plan.inference.overlap == (32, 32, 0)
    assert plan.inference.mirror_axes == (0, 1)
    assert plan.target_spacing_mm == (1.0, 1.0, None)
    assert {stride[2] for stride in plan.network.strides} == {1}
    assert {kernel[2] for kernel in plan.network.kernels} == {1}
    spatial = plan.augmentation[0].model_dump()
    assert spatial["rotation_degrees"] == ((0, 0), (0, 0), (-180, 180))


def test_a_slice_along_x() -> None:
    values, _ = rule_values(fingerprint(shape=(1, 64, 48), spacing_mm=(5.0, 1.0, 1.0)))
    plan = make_plan(values, "the rules")
    assert plan.sampling.patch_size == (1, 64, 48)
    assert plan.target_spacing_mm == (None, 1.0, 1.0)


@pytest.mark.parametrize(
    ("shape", "degrees"),
    [((64, 64, 30), 180), ((72, 48, 30), 180), ((80, 48, 30), 15), ((48, 80, 30), 15)],
)
def test_long_slices_are_turned_little(shape: tuple[int, int, int], degrees: int) -> None:
    """Longer than 1.5 times as wide, as in nnU-Net."""
    data = fingerprint(shape=shape, spacing_mm=(1.0, 1.0, 5.0))
    values, _ = rule_values(data, configuration="2d")
    x, y, z = values["sampling"]["patch_size"]
    assert (max(x, y) > 1.5 * min(x, y)) == (degrees == 15)
    assert z == 1
    turns = [[0, 0], [0, 0], [-degrees, degrees]]
    assert values["augmentation"][0]["rotation_degrees"] == turns


def test_tiny_slices_are_turned_in_their_plane_only() -> None:
    values, _ = rule_values(fingerprint(shape=(3, 2, 40), spacing_mm=(1, 1, 5)), "default", "2d")
    assert values["augmentation"][0]["rotation_degrees"][:2] == [[0, 0], [0, 0]]


def test_a_cascade_augments_its_previous_stage() -> None:
    data = fingerprint(shape=(512, 512, 200), spacing_mm=(0.8, 0.8, 1.5))
    kinds = {
        name: [
            entry["transform"] for entry in rule_values(data, configuration=name)[0]["augmentation"]
        ]
        for name in ("3d_fullres", "3d_cascade_fullres")
    }
    added = ["previous_morphology", "previous_removal"]
    assert kinds["3d_cascade_fullres"] == [*kinds["3d_fullres"], *added]


def test_the_ignore_label_is_kept() -> None:
    values, _ = rule_values(fingerprint(ignore_label=9))
    assert values["ignore_label"] == 9
    assert make_plan(values, "the rules").labels == LABELS


@pytest.mark.parametrize(
    ("configuration", "patch", "batch_dice"),
    [
        ("2d", (512, 512, 1), True),
        ("3d_lowres", (192, 192, 64), False),
        ("3d_fullres", (192, 192, 64), True),
        ("3d_cascade_fullres", (192, 192, 64), True),
    ],
)
def test_every_configuration_of_a_large_scan(
    configuration: str, patch: tuple[int, int, int], batch_dice: bool
) -> None:
    data = fingerprint(shape=(512, 512, 200), spacing_mm=(0.8, 0.8, 1.5))
    values, _ = rule_values(data, configuration=configuration)
    assert values["configuration"] == configuration
    assert tuple(values["sampling"]["patch_size"]) == patch
    assert values["training"]["loss"]["batch_dice"] == batch_dice
    assert (values["target_spacing_mm"][0] > 0.8) == (configuration == "3d_lowres")


def test_the_recommended_configuration_comes_first() -> None:
    assert list(configurations(fingerprint())) == ["3d_fullres", "2d"]
    assert list(configurations(fingerprint(shape=(64, 64, 1)))) == ["2d"]


@given(
    st.tuples(*[st.integers(1, 90)] * 3),
    st.tuples(*[st.floats(0.3, 8)] * 3),
    st.sampled_from(["default", "resenc_m", "resenc_xl"]),
)
@settings(deadline=None, max_examples=60)
def test_rules_always_make_a_valid_plan(shape: Any, spacing: Any, planner: str) -> None:
    values, _ = rule_values(fingerprint(shape=shape, spacing_mm=spacing), planner)
    plan = make_plan(values, "the rules")
    assert plan.network.residual == (planner != "default")
    assert all(
        o == p // 2 for o, p in zip(plan.inference.overlap, plan.sampling.patch_size, strict=True)
    )
