from __future__ import annotations

from typing import Any

import pytest

from autoseg.plan.plan import Plan
from autoseg.plan.sections import Adam, Cosine, DiceCrossEntropy, Plateau, TverskyCrossEntropy
from autoseg.planner.explain import GROUPS, WORDS, group_of, name_of, value_of
from tests.plan.test_plan import full_plan

CT = ("CT",)


def told(step: dict[str, Any], *channels: str) -> str:
    """The first preprocessing step of a plan, in words."""
    values = full_plan(channels=list(channels), preprocessing=[step]).model_dump(mode="json")
    return value_of("preprocessing.0", values["preprocessing"][0], channels)


def test_every_key_has_words_and_stands_in_a_group() -> None:
    parts = {"network": "network", "sampling": "sampling", "splits": "splits"}
    for name in (*parts, "inference", "evaluation"):
        for key in Plan.model_fields[name].annotation.model_fields:  # type: ignore[union-attr]
            assert f"{name}.{key}" in WORDS
    for kind in (Adam, Cosine, DiceCrossEntropy, Plateau, TverskyCrossEntropy):
        (prefix,) = {"optimizer", "schedule", "loss"} & kind.model_fields.keys()
        for key in kind.model_fields:
            assert f"training.{prefix}.{key}" in WORDS
    shown = Plan.model_fields.keys() - {
        *("format_version", "task", "name", "measured", "provenance"),
    }
    assert sorted(shown) == sorted(key for keys in GROUPS.values() for key in keys)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"step": "crop_to_nonzero"}, "cut away the border where every channel is 0"),
        ({"step": "clip", "window": [-1250, 250]}, "limit intensities to -1250 to 250 HU"),
        (
            {"step": "rescale", "range": [0, 255], "whole_numbers": True},
            "map each case's intensities to 0 to 255, in whole numbers",
        ),
        (
            {"step": "resample", "rounding": "down", "anisotropy": None},
            "resample to the voxel size: image cubic, labels linear, sizes rounded down",
        ),
        ({"step": "z_score"}, "subtract the case's mean, divide by its standard deviation"),
        (
            {"step": "z_score", "mean": -81.5, "std": 140.25},
            "subtract -81.5 HU, divide by 140.25 HU",
        ),
    ],
)
def test_steps(step: dict[str, Any], words: str) -> None:
    assert told(step, *CT) == words


def test_only_ct_is_in_hounsfield_units() -> None:
    clip = {"step": "clip", "window": [0, 9]}
    assert told(clip, "MR") == "limit intensities to 0 to 9"
    assert told(clip, "CT", "PET") == "limit intensities to 0 to 9"
    assert told(clip | {"channel": 0}, "CT", "PET") == "limit intensities to 0 to 9 HU (CT)"
    assert told(clip | {"channel": 1}, "CT", "PET") == "limit intensities to 0 to 9 (PET)"


def test_transforms_tell_what_can_happen() -> None:
    plan = full_plan(augmentation=[{"transform": "spatial"}, {"transform": "mirror"}])
    spatial, mirror = (
        value_of(f"augmentation.{index}", entry.model_dump(mode="json"), CT)
        for index, entry in enumerate(plan.augmentation)
    )
    assert "rotation probability 20 %" in spatial
    assert "x -30 to 30° y -30 to 30° z -30 to 30°" in spatial
    assert "elastic alpha" not in spatial  # it has no chance
    assert mirror == "mirror: axes x y z, probability 100 %"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("sampling.patch_size", [160, 160, 80], "160 x 160 x 80 voxels"),
        ("target_spacing_mm", [1.58, 1.58, 2.7], "1.58 x 1.58 x 2.7 mm"),
        ("sampling.foreground_share", 0.33, "33 %"),
        ("network.features", [32, 64, 128], "32, 64, 128"),
        ("network.strides", [[1, 1, 1], [2, 2, 1]], "1 x 1 x 1, 2 x 2 x 1 voxels"),
        ("training.seconds", None, "none"),
        ("training.seconds", 90.0, "90 s"),
        ("labels", {"background": [0], "organ": [1, 2]}, "background 0, organ 1, 2"),
        ("inference.mirror_axes", [0, 2], "x, z"),
        ("shares.0", {"label": 3, "container": [1, 2]}, "label 3 as a part of labels 3, 1, 2"),
    ],
)
def test_values(key: str, value: Any, words: str) -> None:
    assert value_of(key, value, CT) == words


def test_names_and_groups() -> None:
    assert name_of("preprocessing.1") == "step 2"
    assert name_of("augmentation") == "random change"
    assert group_of("inference.overlap") == "prediction"


def test_an_axis_that_is_not_resampled() -> None:
    told = value_of("target_spacing_mm", [1.25, 1.0, None], CT)
    assert told == "1.25 x 1 x each scan's own mm"
    assert value_of("target_spacing_mm", [1.25, 1.0, 3.0], CT) == "1.25 x 1 x 3 mm"
