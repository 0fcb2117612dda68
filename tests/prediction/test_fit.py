from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import json5
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from autoseg.common.errors import DataError
from autoseg.dataset.task import Task, read_task
from autoseg.fingerprint import survey
from autoseg.image.geometry import Geometry
from autoseg.image.image import Image, from_array, read_image
from autoseg.models.folder import FINGERPRINT, FolderFiles
from autoseg.plan.plan import Plan
from autoseg.planner.overrides import plans_folder
from autoseg.prediction.fit import Judge, _distances, check_scan
from autoseg.prediction.model import training_set_of
from autoseg.prediction.predictor import Predictor
from tests.dataset.making import HIPPOCAMPUS, V2, declare, write_scan
from tests.making import tiny_plan
from tests.prediction.making import Pointwise, model_of

PLAN = tiny_plan()
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


# Scans against the training set.

UNSEEN = sorted((HIPPOCAMPUS / "imagesTr").glob("*.nii.gz"))[20:]
UNSEEN += sorted((HIPPOCAMPUS / "imagesTs").glob("*.nii.gz"))
MR_PLAN = tiny_plan(channels=["MRI"], preprocessing=[{"step": "z_score"}])
CT_WINDOW = {"step": "clip", "window": [-100.0, 100.0]}
CT_PLAN = tiny_plan(preprocessing=[CT_WINDOW, {"step": "z_score", "mean": 40.0, "std": 30.0}])


@pytest.fixture(scope="module")
def hippocampus(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """Of a model trained by 20 real MR scans."""
    task = read_task(HIPPOCAMPUS)
    return judge_of(replace(task, cases=task.cases[:20]), MR_PLAN, tmp_path_factory.mktemp("mr"))


@pytest.fixture(scope="module")
def abdomen(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """Of a model trained by six phantoms in Hounsfield units."""
    folder = tmp_path_factory.mktemp("ct") / "Task001_Abdomen"
    declare(folder, V2)
    for seed in range(6):
        image = phantom(seed)
        label = (image.array[0] > 50).astype(np.uint8)
        geometry = image.geometry
        files = {f"imagesTr/a{seed}_0000.nii.gz": image.array[0], f"labelsTr/a{seed}.nii.gz": label}
        for name, array in files.items():
            write_scan(folder / name, array, geometry.spacing_mm, direction=geometry.direction)
    return judge_of(read_task(folder), CT_PLAN, folder.parent / "model")


def judge_of(task: Task, plan: Plan, folder: Path) -> Judge:
    survey(task, 1)[0].save(folder / FINGERPRINT)
    plan.save(folder / "plan.json")
    return Judge(plan, training_set_of(FolderFiles(folder)))


def phantom(seed: int, direction: Sequence[float] = np.eye(3).ravel().tolist()) -> Image:
    """An elliptic body in air with an organ: noise, and sizes of its own."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in (40, 36, 24)), indexing="ij")
    wide, deep = rng.uniform(0.7, 0.9, 2)
    body, organ = (x / wide) ** 2 + (y / deep) ** 2 < 1, (x - 0.2) ** 2 + y**2 + z**2 < 0.3
    values = np.select([organ, body], [60.0, rng.uniform(-20, 20)], -1000.0)
    values += rng.normal(0, 12, values.shape)
    spacing = (9.0, 9.0, float(rng.uniform(4, 6)))
    grid = Geometry((40, 36, 24), spacing, (0.0, 0.0, 0.0), tuple(direction))
    return Image(np.rint(values).astype(np.int16)[None], grid)


def changed(image: Image, shift: float = 0.0, factor: float = 1.0, spacing: float = 1.0) -> Image:
    x, y, z = (spacing * mm for mm in image.geometry.spacing_mm)
    values = image.array.astype(np.float32) * factor + shift
    return Image(values, replace(image.geometry, spacing_mm=(x, y, z)))


@pytest.mark.parametrize("path", UNSEEN, ids=lambda path: path.name)
def test_unseen_scans_of_the_set_fit(hippocampus: Judge, path: Path) -> None:
    image = read_image(path, own_type=True)
    assert hippocampus.differences(image, ["MR"]) == {}
    # the network standardises each scan, so another scale is the same scan
    assert hippocampus.differences(changed(image, factor=1000)) == {}
    assert hippocampus.not_checked == ""


def test_another_spacing_is_named_with_both_figures(hippocampus: Judge) -> None:
    image = read_image(UNSEEN[0])
    found = hippocampus.differences(changed(image, spacing=4))
    assert "4 x 4 x 4 mm" in found["spacing"]
    assert "1 x 1 x 1 mm" in found["spacing"]
    assert hippocampus.differences(changed(image, spacing=1.5)) == {}
    coarse = Image(image.array[:, ::4, ::4, ::4], image.geometry)
    assert "field of view" in hippocampus.differences(coarse)


def tiled(image: Image, count: int) -> Image:
    """A scan side by side with itself along each axis."""
    x, y, z = (count * size for size in image.geometry.size)
    tiles = np.tile(image.array, (1, count, count, count))
    return Image(tiles, replace(image.geometry, size=(x, y, z)))


def test_what_is_far_larger_and_differs_otherwise_is_refused(hippocampus: Judge) -> None:
    image = read_image(HIPPOCAMPUS / "imagesTs" / "hippocampus_040.nii.gz")
    head, half = (tiled(image, count) for count in (5, 4))  # 125 and 64 times as large
    assert set(hippocampus.differences(head)) == {"field of view"}
    with pytest.raises(DataError, match=r"field of view is \d+ times .* modality is CT"):
        hippocampus.differences(head, ["CT"])

    assert set(hippocampus.differences(half, ["CT"])) == {"field of view", "modality"}


def test_a_ct_does_not_fit_an_mr_model(hippocampus: Judge) -> None:
    image = phantom(0)
    x, y, z = image.geometry.size
    grid = replace(image.geometry, size=(x, y // 2, z))
    found = hippocampus.differences(Image(image.array[:, :, : y // 2], grid), ["CT"])
    assert {"modality", "spacing", "field of view", "range of MRI", "histogram of MRI"} <= set(
        found
    )
    assert found["modality"].startswith("is CT ")
    assert "-10" in found["range of MRI"]


@pytest.mark.parametrize("shift", [-1024, 1024])
def test_shifted_hounsfield_units(abdomen: Judge, shift: int) -> None:
    for seed in range(6, 12):
        assert abdomen.differences(phantom(seed), ["CT"]) == {}
        assert "histogram of CT" in abdomen.differences(changed(phantom(seed), shift))


def test_tissue_that_is_shifted_out_of_the_labelled_range(abdomen: Judge) -> None:
    """Without air nothing is below the training range."""
    inside = phantom(9).array[:, 12:28, 12:24]
    image = Image(inside - np.int16(300), replace(phantom(9).geometry, size=inside.shape[1:]))
    assert "0% of the body" in abdomen.differences(image)["histogram of CT"]


@pytest.mark.parametrize("direction", [np.diag([-1, -1, 1]), np.eye(3)[[2, 0, 1]]])
def test_lengths_are_compared_along_the_axes_of_the_patient(
    abdomen: Judge, direction: NDArray[Any]
) -> None:
    grid = phantom(7).geometry
    axes = np.abs(direction).argmax(axis=0)  # of the patient, for each axis of the scan
    x, y, z = (grid.spacing_mm[axis] for axis in axes)
    image = Image(
        phantom(7).array.transpose(0, *(1 + axes)),
        Geometry(
            tuple(grid.size[axis] for axis in axes),  # type: ignore[arg-type]
            (x, y, z),
            grid.origin_mm,
            tuple(direction.ravel().tolist()),
        ),
    )
    assert set(abdomen.differences(image)) == {"orientation"}
    assert {"spacing", "orientation"} <= set(abdomen.differences(changed(image, spacing=3)))


@pytest.mark.parametrize(
    ("channel", "modality", "fits"),
    [
        ("CT", "CT", True),
        ("CT", "MR", False),
        ("low-dose_CTA", "CT", True),
        ("MRI", "CT", False),
        ("T1", "MR", True),
        ("T2_FLAIR", "PT", False),
        ("MR_T1", "MR", True),
        ("PET/CT", "CT", True),
        ("PET", "PT", True),
        ("noise", "CT", True),  # a name that means no modality
        ("CT", "OT", True),  # a modality that says nothing
        ("CT", None, True),
    ],
)
def test_the_modality(channel: str, modality: str | None, fits: bool) -> None:
    judge = Judge(tiny_plan(channels=[channel]), None)
    found = judge.differences(scan(0, 9), [modality])
    assert set(found) == (set() if fits else {"modality"})


def test_what_cannot_be_checked_is_said(tmp_path: Path, abdomen: Judge) -> None:
    assert "fingerprint.json" in Judge(CT_PLAN, None).not_checked
    assert abdomen.training is not None
    cases = tuple(case._replace(bodies=((),)) for case in abdomen.training.cases)
    old = Judge(CT_PLAN, replace(abdomen.training, cases=cases))
    assert old.not_checked.startswith("histogram")
    assert old.differences(phantom(8)) == {}
    assert "range of CT" in old.differences(changed(phantom(8), -1024))


def test_the_distance_is_the_earth_movers() -> None:
    rng = np.random.default_rng(0)
    first, second = np.sort(rng.normal(size=(2, 32)), axis=1)
    expected = wasserstein_distance(first, second)
    assert _distances(first[None], second)[0] == pytest.approx(expected)


def test_one_training_scan_is_enough(abdomen: Judge) -> None:
    assert abdomen.training is not None
    judge = Judge(CT_PLAN, replace(abdomen.training, cases=abdomen.training.cases[:1]))
    assert judge.differences(phantom(8)) == {}
    assert "range of CT" in judge.differences(changed(phantom(8), 1024))
