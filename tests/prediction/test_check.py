from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import json5
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from autoseg.common.errors import DataError
from autoseg.image.image import Image, from_array
from autoseg.planner.overrides import plans_folder
from autoseg.prediction.model import check_scan
from autoseg.prediction.predictor import Predictor
from tests.making import tiny_plan
from tests.prediction.making import Pointwise, model_of

WINDOW = {"step": "clip", "window": [-1000.0, 400.0]}
FIXED = {"step": "z_score", "mean": -100.0, "std": 200.0}


def scan(low: float, high: float, spacing_mm: Sequence[float] = (1, 1, 1)) -> Image:
    """A scan of one channel whose values lie evenly between two."""
    values = np.linspace(low, high, 6 * 5 * 4, dtype=np.float32).reshape(6, 5, 4)
    return from_array(values, spacing_mm)


def fault(image: Image, *steps: Any, **changes: Any) -> str | None:
    try:
        check_scan(tiny_plan(preprocessing=list(steps), **changes), image)
    except DataError as error:
        return str(error)
    return None


def test_the_number_of_channels() -> None:
    two: NDArray[Any] = np.random.default_rng(0).normal(size=(2, 6, 5, 4))
    told = "the scan has 2 channels, the model needs 1: CT"
    assert fault(from_array(two, (1, 1, 1))) == told
    assert fault(from_array(two, (1, 1, 1)), channels=["T1", "T2"]) is None


def test_a_scan_of_one_layer() -> None:
    flat = from_array(np.arange(30.0).reshape(6, 5, 1), (1, 1, 1))
    assert fault(flat) == "the scan is a single layer along z; the model segments volumes"


def test_a_scan_without_a_picture() -> None:
    assert fault(scan(7, 7)) == "every voxel has the value 7: there is no picture in it"


def test_one_empty_channel_of_two_may_be_a_missing_one() -> None:
    values = np.stack([np.arange(120.0).reshape(6, 5, 4), np.zeros((6, 5, 4))])
    image = from_array(values, (1, 1, 1))
    assert fault(image, {"step": "z_score"}, channels=["T1", "T2"]) is None


@pytest.mark.parametrize("values", [(-1024, 3071), (0, 255), (-1024, -900), (0, 4095)])
def test_a_window_alone_accepts_what_shows_something_in_it(values: tuple[float, float]) -> None:
    assert fault(scan(*values), WINDOW) is None


def test_next_to_nothing_of_the_window() -> None:
    assert fault(scan(0, 1), WINDOW) == (
        "channel CT: its values go from 0 to 1, next to nothing of the model's window -1000 to "
        "400 Hounsfield units; give the scan as it was acquired"
    )


@pytest.mark.parametrize("values", [(400, 3000), (-3000, -1000), (1e4, 2e4)])
@pytest.mark.parametrize("steps", [[WINDOW], [WINDOW, {"step": "rescale"}], [WINDOW, FIXED]])
def test_values_outside_of_the_window(values: tuple[float, float], steps: list[Any]) -> None:
    found = fault(scan(*values), *steps)
    assert found is not None
    assert "all outside of the model's window -1000 to 400 Hounsfield units" in found


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((0, 1), "from 0 to 1; the model was trained on values that spread by 200 Hounsfield"),
        ((9000, 12000), "that spread by 200 around -100 Hounsfield"),
        ((-1024, 3071), None),
        ((0, 255), None),
    ],
)
def test_values_against_those_of_the_training(
    values: tuple[float, float], told: str | None
) -> None:
    found = fault(scan(*values), FIXED)
    assert found is None if told is None else told in (found or "")
    mr = fault(scan(*values), FIXED, channels=["T1"])
    assert "Hounsfield" not in (mr or "")


@pytest.mark.parametrize("values", [(0, 1e-3), (0, 1), (0, 65535), (1e6, 2e6)])
@pytest.mark.parametrize("step", ["rescale", "z_score"])
def test_any_scale_is_right_where_each_scan_is_scaled_by_itself(
    values: tuple[float, float], step: str
) -> None:
    assert fault(scan(*values), {"step": step}) is None


@pytest.mark.parametrize("values", [(-1024, 3071), (0, 255), (0, 1)])
def test_the_published_covid_plan_takes_scans_that_are_scaled_already(
    values: tuple[float, float],
) -> None:
    """Its set holds cases in 0 to 255 beside those in Hounsfield units."""
    text = (plans_folder() / "Task001_COVID.json5").read_text(encoding="utf-8")
    steps = json5.loads(text)["preprocessing"]
    assert [step["step"] for step in steps][:2] == ["clip", "rescale"]
    assert fault(scan(*values, (0.8, 0.8, 1)), *steps, target_spacing_mm=[1.58, 1.58, 2.7]) is None


def test_a_step_is_for_its_channel() -> None:
    values = np.stack([np.linspace(-1000, 1000, 120), np.linspace(0, 1, 120)])
    image = from_array(values.reshape(2, 6, 5, 4), (1, 1, 1))
    channels = ["CT", "PET"]
    assert fault(image, {**WINDOW, "channel": 0}, channels=channels) is None
    found = fault(image, {**WINDOW, "channel": 1}, channels=channels)
    assert (found or "").startswith("channel PET: its values go from 0 to 1, next to nothing")


@pytest.mark.parametrize(
    ("spacing_mm", "is_right"),
    [
        ((1, 1, 1), True),
        ((0.4, 0.4, 0.4), True),
        ((0.9, 0.9, 20), True),
        ((0.001, 0.001, 0.003), False),
        ((1, 1, 1000), False),
    ],
)
def test_the_size_of_voxels(spacing_mm: tuple[float, ...], is_right: bool) -> None:
    image = scan(0, 9, spacing_mm)
    found = fault(image, {"step": "resample"}, target_spacing_mm=[1.58, 1.58, 2.7])
    assert (found is None) == is_right
    if found:
        assert "those of the model 1.58 x 1.58 x 2.7 mm; correct the spacing in the file" in found
    assert fault(image, target_spacing_mm=[1.58, 1.58, 2.7]) is None  # nothing is resampled
    kept = [None, None, None]
    assert fault(image, {"step": "resample"}, target_spacing_mm=kept) is None


def test_a_predictor_refuses_it_before_its_network_sees_it() -> None:
    def never(patches: torch.Tensor) -> torch.Tensor:
        raise AssertionError("asked")

    network = Pointwise()
    network.forward = never  # type: ignore[method-assign]
    predictor = Predictor(model_of(tiny_plan(preprocessing=[WINDOW]), network), device="cpu")
    with pytest.raises(DataError, match="next to nothing of the model's window"):
        predictor.predict(scan(0, 1))
