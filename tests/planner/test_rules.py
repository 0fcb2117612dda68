import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.common.errors import PlanError
from autoseg.common.files import read_json
from autoseg.planner.grid import DataFigures, full_grid
from autoseg.planner.rules import PLANNERS, Configuration, decide

ROOT = Path(__file__).parents[2]
VECTORS = read_json(ROOT / "tests/data/nnunet_plan_vectors.json")
CHECK = runpy.run_path(str(ROOT / "scripts/check_plan_vectors.py"))
NAMES = ("CT", "MR", "PET", "noNorm")
PRIMES = (53, 83, 127, 211, 397, 509, 997)


def make(
    spacing: Sequence[float] = (1, 1, 1),
    shape: Sequence[int] = (512, 512, 512),
    cases: int = 20,
    **others: Any,
) -> DataFigures:
    figures = DataFigures(np.tile(spacing, (cases, 1)), np.tile(shape, (cases, 1)), ("MR",), 3, 1.0)
    return replace(figures, **others)


@st.composite
def data_figures(draw: st.DrawFn) -> DataFigures:
    cases = draw(st.integers(1, 6))
    spacings = st.tuples(*[st.floats(0.1, 12)] * 3)
    shapes = st.tuples(*[st.integers(8, 1000)] * 3)
    return DataFigures(
        spacings_mm=draw(st.lists(spacings, min_size=cases, max_size=cases)),
        shapes=draw(st.lists(shapes, min_size=cases, max_size=cases)),
        channels=draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(tuple)),
        label_count=draw(st.integers(1, 60)),
        relative_size_after_cropping=draw(st.floats(0.05, 1)),
    )


planner_names = st.sampled_from([planner.name for planner in PLANNERS])


@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_equals_nnunet(number):
    assert list(CHECK["find_differences"](VECTORS[number])) == []


def test_check_finds_differences():
    vector = dict(VECTORS[0])
    vector["configurations"] = {
        **vector["configurations"],
        "2d": {**vector["configurations"]["2d"], "batch_size": 7},
    }
    assert list(CHECK["find_differences"](vector)) == ["2d: batch_size: expected 7, found 8"]


@pytest.mark.parametrize(
    ("planner", "memory_gb", "patch"),
    [
        ("default", 4, (96, 112, 112)),
        ("default", 11, (128, 160, 160)),
        ("default", 16, (160, 160, 192)),
        ("resenc_m", 16, (160, 160, 192)),
        ("resenc_l", 8, (128, 128, 160)),
        ("resenc_xl", 40, (224, 224, 256)),
    ],
)
def test_ties_are_broken_as_by_nnunet(planner, memory_gb, patch):
    # From nnU-Net 2.8.1: of equal axes, the last one in z, y, x order shrinks first.
    assert decide(make(), planner, memory_gb)["3d_fullres"].patch_size == patch


@given(data_figures(), planner_names, st.sampled_from([2.0, 8.0, 24.0, None]))
@settings(deadline=None, max_examples=60)
def test_every_configuration_is_valid(figures, planner, memory_gb):
    found = decide(figures, planner, memory_gb)
    assert ("3d_lowres" in found) == ("3d_cascade_fullres" in found)
    assert found.keys() >= {"2d", "3d_fullres"}
    for name, configuration in found.items():
        assert configuration.name == name
        check_configuration(configuration, figures)


def check_configuration(found: Configuration, figures: DataFigures) -> None:
    dimensions = 2 if found.name == "2d" else 3
    assert len(found.axes) == dimensions
    assert list(found.axes) == sorted(set(found.axes))
    divisors = np.prod(found.strides, axis=0)
    assert min(found.patch_size) >= 1
    assert not np.mod(found.patch_size, divisors).any()
    assert found.batch_size >= 2
    assert {step for stride in found.strides for step in stride} <= {1, 2}
    stages = len(found.features)
    most = 512 if dimensions == 2 else 320
    assert found.features == tuple(min(32 * 2**stage, most) for stage in range(stages))
    assert len(found.strides) == len(found.kernels) == len(found.blocks_encoder) == stages
    assert len(found.blocks_decoder) == stages - 1
    assert len(found.normalization) == len(found.use_mask) == len(figures.channels)
    assert found.evidence.keys() == found.__dataclass_fields__.keys() - {"name", "axes", "evidence"}
    assert all(found.evidence.values())


@given(data_figures(), planner_names, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_order_of_the_cases_does_not_matter(figures, planner, random):
    order = list(range(figures.cases))
    random.shuffle(order)
    shuffled = replace(
        figures,
        spacings_mm=np.asarray(figures.spacings_mm)[order],
        shapes=np.asarray(figures.shapes)[order],
    )
    assert decide(shuffled, planner) == decide(figures, planner)


@given(
    st.lists(st.floats(0.1, 12), min_size=3, max_size=3, unique=True),
    st.permutations(PRIMES),  # prime shapes, so that no two axes are covered to the same share
    planner_names,
)
@settings(deadline=None, max_examples=60)
def test_swapped_axes_swap_the_plan(spacing, primes, planner):
    shape = primes[:3]
    swap = [1, 0, 2]
    found = decide(make(spacing, shape), planner)
    swapped = decide(make([spacing[i] for i in swap], [shape[i] for i in swap]), planner)
    for name in ("2d", "3d_fullres"):
        assert by_axis(swapped[name], [0, 1, 2]) == by_axis(found[name], swap)
        assert swapped[name].batch_size == found[name].batch_size


def by_axis(found: Configuration, names: list[int]) -> dict[int, list[Any]]:
    columns = zip(
        found.axes,
        found.spacing_mm,
        found.median_shape,
        found.patch_size,
        zip(*found.strides, strict=True),
        zip(*found.kernels, strict=True),
        strict=True,
    )
    return {names[axis]: values for axis, *values in columns}


def test_planner_axes_put_the_coarsest_axis_first():
    assert full_grid(make((1, 1, 1))).axes == (2, 1, 0)
    assert full_grid(make((1, 2, 1))).axes == (1, 2, 0)
    assert full_grid(make((2, 1, 1))).axes == (0, 2, 1)


def test_2d_lacks_the_coarsest_axis():
    assert decide(make((1, 1, 3)))["2d"].axes == (0, 1)
    assert decide(make((1, 3, 1)))["2d"].axes == (0, 2)
    assert decide(make((3, 1, 1), (90, 300, 310)))["2d"].median_shape == (300.0, 310.0)


def test_single_slices_have_2d_only():
    assert list(decide(make((1, 1, 5), (200, 200, 1)))) == ["2d"]


def test_anisotropic_axis_gets_a_fine_percentile_of_its_spacings():
    spacings = [(0.5, 0.5, z) for z in np.linspace(1.0, 9.0, 11)]
    figures = DataFigures(spacings, [(400, 400, 60)] * 11, ("CT",), 2, 1.0)
    full = decide(figures)["3d_fullres"]
    assert full.spacing_mm == pytest.approx((0.5, 0.5, 1.8))
    assert full.evidence["spacing_mm"] == (
        "median spacing 0.5 x 0.5 x 5 mm of 11 cases; anisotropic along z: "
        "median shape 400 x 400 x 60; 10th percentile there 1.8 mm"
    )


def test_low_resolution_of_large_cases():
    found = decide(make())
    assert list(found) == ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]
    assert found["3d_lowres"].spacing_mm == pytest.approx([1.03**32] * 3)
    assert found["3d_lowres"].median_shape == (199.0, 199.0, 199.0)
    assert [found[name].batch_dice for name in found] == [True, False, True, True]
    assert found["3d_cascade_fullres"] == replace(found["3d_fullres"], name="3d_cascade_fullres")


def test_normalization_follows_the_channel_names():
    channels = ("CT", "ct", "CTA", "noNorm", "rescale_to_0_1", "rgb_to_0_1", "MR")
    wide = decide(make(channels=channels, relative_size_after_cropping=0.75))["2d"]
    assert wide.normalization == (
        "CTNormalization",
        "CTNormalization",
        "ZScoreNormalization",
        "NoNormalization",
        "RescaleTo01Normalization",
        "RGBTo01Normalization",
        "ZScoreNormalization",
    )
    assert wide.use_mask == (False,) * 7
    cropped = decide(make(channels=channels, relative_size_after_cropping=0.74))["2d"]
    assert cropped.use_mask == (False, False, True, False, False, False, True)


@pytest.mark.parametrize("planner", PLANNERS)
def test_memory_defaults_to_the_planners_own(planner):
    assert decide(make(), planner.name) == decide(make(), planner.name, planner.memory_gb)


def test_unknown_planner():
    with pytest.raises(PlanError, match=r"'huge'.* default, resenc_m"):
        decide(make(), "huge")


@pytest.mark.parametrize("memory_gb", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_memory(memory_gb):
    with pytest.raises(PlanError, match=rf"{memory_gb} GB"):
        decide(make(), "default", memory_gb)


def test_too_little_memory():
    with pytest.raises(PlanError, match=r"1e-09 GB.*'default'"):
        decide(make(), "default", 1e-9)
