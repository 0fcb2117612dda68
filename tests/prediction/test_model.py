from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import json5
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from autoseg.common.errors import AutosegError, DataError
from autoseg.image.image import Image, from_array
from autoseg.models.checkpoint import save_checkpoint
from autoseg.models.folder import FINAL, FolderFiles
from autoseg.networks.unet import build_network
from autoseg.planner.overrides import plans_folder
from autoseg.prediction.model import check_scan, load_model
from autoseg.prediction.predictor import Predictor
from tests.making import tiny_plan
from tests.prediction.making import Pointwise, model_of, save_model

CPU = torch.device("cpu")
PLAN = tiny_plan()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(PLAN, tmp_path / "Modèle 1", "0", "2", "all")


def one_line(error: pytest.ExceptionInfo[AutosegError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_loads_all_finished_folds_for_evaluation(folder: Path) -> None:
    (folder / "fold_1").mkdir()  # begun, not finished
    model = load_model(folder, None, CPU)
    assert model.folds == ("0", "2", "all")
    assert model.plan == PLAN
    for seed, network in enumerate(model.networks):
        assert not network.training
        torch.manual_seed(seed)
        expected = build_network(PLAN).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


def test_loads_the_named_folds_in_their_order(folder: Path) -> None:
    assert load_model(folder, ["2", "0"], CPU).folds == ("2", "0")
    assert FolderFiles(folder).folds() == ["0", "2", "all"]


def test_a_missing_fold_is_named_with_the_finished_ones(folder: Path) -> None:
    with pytest.raises(AutosegError) as error:
        load_model(folder, ["0", "1", "4"], CPU)
    assert "folds 1, 4" in one_line(error)
    assert "0, 2, all" in one_line(error)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_plan_is_not_a_model(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "some where"
    if exists:
        path.mkdir()
    with pytest.raises(AutosegError) as error:
        load_model(path, None, CPU)
    assert one_line(error).startswith(f"{path} ")
    assert "plan.json" in one_line(error)


def test_a_model_without_finished_fold_says_how_to_train(folder: Path) -> None:
    for fold in FolderFiles(folder).folds():
        (folder / f"fold_{fold}" / FINAL).unlink()
    with pytest.raises(AutosegError) as error:
        load_model(folder, None, CPU)
    assert "autoseg_train Task001_Tiny fold 0" in one_line(error)


def test_weights_of_another_plan_are_refused(folder: Path) -> None:
    other = tiny_plan(training={"seed": 1})
    other.save(folder / "plan.json")
    with pytest.raises(AutosegError) as error:
        load_model(folder, ["0"], CPU)
    message = one_line(error)
    assert message.startswith(str(folder / "fold_0" / FINAL))
    assert PLAN.id in message
    assert other.id in message


@pytest.mark.parametrize("damage", ["empty", "half", "text"])
def test_damaged_weights_are_named(folder: Path, damage: str) -> None:
    path = folder / "fold_2" / FINAL
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"{}" * 99}[damage])
    with pytest.raises(AutosegError) as error:
        load_model(folder, None, CPU)
    assert one_line(error).startswith(f"{path} ")


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    wider = tiny_plan(network={"features": [3, 4]})
    path = folder / "fold_0" / FINAL
    save_checkpoint(path, dict(build_network(wider).state_dict()), {"plan_id": PLAN.id})
    with pytest.raises(AutosegError) as error:
        load_model(folder, ["0"], CPU)
    assert one_line(error).startswith(f"{path} ")


def test_weights_without_a_state_are_refused(folder: Path) -> None:
    from safetensors.torch import save_file

    path = folder / "fold_0" / FINAL
    save_file(dict(build_network(PLAN).state_dict()), path)
    with pytest.raises(AutosegError) as error:
        load_model(folder, ["0"], CPU)
    assert one_line(error).startswith(f"{path} ")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": 99}'])
def test_a_damaged_plan_is_named(folder: Path, text: str) -> None:
    (folder / "plan.json").write_text(text)
    with pytest.raises(AutosegError) as error:
        load_model(folder, None, CPU)
    assert one_line(error).startswith(str(folder / "plan.json"))


WINDOW = {"step": "clip", "window": [-1000.0, 400.0]}
FIXED = {"step": "z_score", "mean": -100.0, "std": 200.0}


def scan(low: float, high: float, spacing_mm: Sequence[float] = (1, 1, 1)) -> Image:
    """A scan of one channel with evenly spaced values."""
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
    found = fault(from_array(two, (1, 1, 1)))
    assert found is not None
    assert "2 channels" in found
    assert found.endswith("1: CT")
    assert fault(from_array(two, (1, 1, 1)), channels=["T1", "T2"]) is None


def test_a_scan_of_one_slice() -> None:
    flat = from_array(np.arange(30.0).reshape(6, 5, 1), (1, 1, 1))
    assert "single slice along z" in (fault(flat) or "")


def test_an_empty_scan() -> None:
    assert (fault(scan(7, 7)) or "").endswith("value 7")


def test_one_of_two_channels_may_be_empty() -> None:
    values = np.stack([np.arange(120.0).reshape(6, 5, 4), np.zeros((6, 5, 4))])
    image = from_array(values, (1, 1, 1))
    assert fault(image, {"step": "z_score"}, channels=["T1", "T2"]) is None


@pytest.mark.parametrize("values", [(-1024, 3071), (0, 255), (-1024, -900), (0, 4095)])
def test_values_within_the_window(values: tuple[float, float]) -> None:
    assert fault(scan(*values), WINDOW) is None


def test_too_little_of_the_window() -> None:
    found = fault(scan(0, 1), WINDOW)
    assert found is not None
    assert found.startswith("channel CT: ")
    assert "from 0 to 1" in found
    assert "-1000 to 400 Hounsfield units" in found


@pytest.mark.parametrize("values", [(400, 3000), (-3000, -1000), (1e4, 2e4)])
@pytest.mark.parametrize("steps", [[WINDOW], [WINDOW, {"step": "rescale"}], [WINDOW, FIXED]])
def test_values_outside_of_the_window(values: tuple[float, float], steps: list[Any]) -> None:
    found = fault(scan(*values), *steps)
    assert found is not None
    assert "outside of the model's window -1000 to 400 Hounsfield units" in found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1), "standard deviation of 200 Hounsfield"),
        ((9000, 12000), "200 and a mean of -100 Hounsfield"),
        ((-1024, 3071), None),
        ((0, 255), None),
    ],
)
def test_values_far_from_those_of_the_training(
    values: tuple[float, float], message: str | None
) -> None:
    found = fault(scan(*values), FIXED)
    assert found is None if message is None else message in (found or "")
    mr = fault(scan(*values), FIXED, channels=["T1"])
    assert "Hounsfield" not in (mr or "")


@pytest.mark.parametrize("values", [(0, 1e-3), (0, 1), (0, 65535), (1e6, 2e6)])
@pytest.mark.parametrize("step", ["rescale", "z_score"])
def test_any_scale_is_valid_if_each_scan_is_normalised_by_itself(
    values: tuple[float, float], step: str
) -> None:
    assert fault(scan(*values), {"step": step}) is None


@pytest.mark.parametrize("values", [(-1024, 3071), (0, 255), (0, 1)])
def test_the_published_covid_plan_accepts_rescaled_scans(
    values: tuple[float, float],
) -> None:
    """Its data set holds cases scaled to 0 to 255 and others in Hounsfield units."""
    text = (plans_folder() / "Task001_COVID.json5").read_text(encoding="utf-8")
    steps = json5.loads(text)["preprocessing"]
    assert [step["step"] for step in steps][:2] == ["clip", "rescale"]
    assert fault(scan(*values, (0.8, 0.8, 1)), *steps, target_spacing_mm=[1.58, 1.58, 2.7]) is None


def test_a_step_concerns_only_its_channel() -> None:
    values = np.stack([np.linspace(-1000, 1000, 120), np.linspace(0, 1, 120)])
    image = from_array(values.reshape(2, 6, 5, 4), (1, 1, 1))
    channels = ["CT", "PET"]
    assert fault(image, {**WINDOW, "channel": 0}, channels=channels) is None
    found = fault(image, {**WINDOW, "channel": 1}, channels=channels)
    assert (found or "").startswith("channel PET: ")


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
def test_the_voxel_spacing(spacing_mm: tuple[float, ...], is_right: bool) -> None:
    image = scan(0, 9, spacing_mm)
    found = fault(image, {"step": "resample"}, target_spacing_mm=[1.58, 1.58, 2.7])
    assert (found is None) == is_right
    if found:
        assert "1.58 x 1.58 x 2.7 mm" in found
    assert fault(image, target_spacing_mm=[1.58, 1.58, 2.7]) is None  # nothing is resampled
    kept = [None, None, None]
    assert fault(image, {"step": "resample"}, target_spacing_mm=kept) is None


def test_a_predictor_checks_the_scan_before_its_network_runs() -> None:
    def never(patches: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the network ran")

    network = Pointwise()
    network.forward = never  # type: ignore[method-assign]
    predictor = Predictor(model_of(tiny_plan(preprocessing=[WINDOW]), network), device="cpu")
    with pytest.raises(DataError, match="channel CT"):
        predictor.predict(scan(0, 1))
