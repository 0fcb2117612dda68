from __future__ import annotations

from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.transform import resize

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.image.image import Image
from autoseg.plan.plan import Plan
from autoseg.prediction.batch import predict_cases
from autoseg.prediction.inputs import FoundInputs, Inputs
from autoseg.prediction.predictor import Ensemble, Predictor
from autoseg.preprocessing.steps import prepare
from tests.dataset.making import write_scan
from tests.making import REGIONS, grid, tiny_plan
from tests.prediction.making import Layers, Pointwise, model_of

CROP = {"step": "crop_to_nonzero"}
RESAMPLE = {"step": "resample", "anisotropy": None}
FINE = tiny_plan(name="fine", preprocessing=[RESAMPLE], target_spacing_mm=[0.7, 1.0, 0.8])
COARSE = tiny_plan(
    name="coarse",
    preprocessing=[CROP, RESAMPLE],
    target_spacing_mm=[1.9, 1.4, 2.2],
    sampling={"patch_size": [6, 4, 8]},
    inference={"overlap": [0, 2, 5], "weighting": "uniform"},
)
PLAIN = tiny_plan(name="plain")


def scan(shape: tuple[int, ...] = (14, 21, 11)) -> Image:
    """Zeros with a box of smooth values, so that cropping has an effect."""
    coarse = np.random.default_rng(0).uniform(0.1, 2.4, (4, 5, 3))
    array = np.zeros((1, *shape), np.float32)
    array[0, 2:12, 3:18, 1:9] = resize(coarse, (10, 15, 8), order=1)
    return Image(array, grid(shape))


def member(plan: Plan, *networks: torch.nn.Module) -> Predictor:
    return Predictor(model_of(plan, *networks), device="cpu")


def slow_shares(plan: Plan, network: torch.nn.Module, image: Image) -> NDArray[np.float64]:
    """Probabilities of a whole scan on its own grid, in float64 by scikit-image."""
    ready = prepare(plan, image)
    logits = network(torch.from_numpy(ready.image)[None]).double()
    regions = plan.classes.are_regions
    low = (torch.sigmoid(logits) if regions else torch.softmax(logits, dim=1))[0].numpy()
    out = np.zeros((len(low), *image.geometry.size))
    if not regions:
        out[0] = 1
    box = tuple(slice(*pair) for pair in ready.box)
    for share, whole in zip(low, out, strict=True):
        whole[box] = resize(share, whole[box].shape, order=1, mode="edge", anti_aliasing=False)
    return out


def clear_of(shares: NDArray[np.float64]) -> NDArray[np.bool_]:
    ranked = np.sort(shares, axis=0)
    clear: NDArray[np.bool_] = ranked[-1] - ranked[-2] > 1e-4
    return clear


def test_plans_are_averaged_on_the_grid_of_the_scan() -> None:
    pairs = [
        (FINE, Pointwise(slope=0.3)),
        (COARSE, Pointwise(slope=0.5, shift=-0.2)),
        (PLAIN, Pointwise(shift=0.4)),
    ]
    image = scan()
    each = [slow_shares(plan, network, image) for plan, network in pairs]
    mean = np.mean(each, axis=0)
    found = Ensemble([member(*pair) for pair in pairs]).predict(image)
    assert found.dtype == np.uint8
    assert (found == mean.argmax(axis=0))[clear_of(mean)].all()
    assert clear_of(mean).mean() > 0.95
    for alone in each:  # otherwise the test would prove nothing
        assert (alone.argmax(axis=0) != found)[clear_of(alone) & clear_of(mean)].any()


def test_each_plan_has_the_same_weight() -> None:
    one, two, three = Pointwise(slope=0.3), Pointwise(shift=0.4), Pointwise(shift=-0.4)
    image = scan()
    folds = (slow_shares(PLAIN, two, image) + slow_shares(PLAIN, three, image)) / 2
    mean = (slow_shares(FINE, one, image) + folds) / 2
    found = Ensemble([member(FINE, one), member(PLAIN, two, three)]).predict(image)
    assert (found == mean.argmax(axis=0))[clear_of(mean)].all()


def test_regions_are_averaged() -> None:
    pairs = [
        (tiny_plan(**REGIONS), Layers(3)),
        (tiny_plan(**REGIONS, preprocessing=[CROP, RESAMPLE]), Layers(3, slope=0.2)),
        (
            tiny_plan(**REGIONS, preprocessing=[RESAMPLE], target_spacing_mm=[2, 1.5, 1]),
            Layers(3, slope=2),
        ),
    ]
    image = scan()
    mean = np.mean([slow_shares(plan, network, image) for plan, network in pairs], axis=0)
    expected = np.zeros(image.geometry.size, int)
    for value, share in zip((1, 2, 4), mean, strict=True):
        expected[share > 0.5] = value
    found = Ensemble([member(*pair) for pair in pairs]).predict(image)
    clear = (np.abs(mean - 0.5) > 1e-4).all(axis=0)
    assert (found == expected)[clear].all()
    assert len(np.unique(found)) > 2


def test_an_ensemble_of_one_model() -> None:
    one = member(COARSE, Pointwise(slope=0.5))
    assert (Ensemble([one]).predict(scan()) == one.predict(scan())).all()


def test_the_saved_probabilities_are_the_mean(tmp_path: Path) -> None:
    pairs = [(FINE, Pointwise(slope=0.3)), (COARSE, Pointwise(slope=0.5))]
    image = scan()
    both = Ensemble([member(*pair) for pair in pairs])
    both.segment(both.prepare(image), tmp_path / "a.b2nd")
    found = blosc2.open(str(tmp_path / "a.b2nd"), mode="r")[:]
    expected = np.mean([slow_shares(plan, network, image) for plan, network in pairs], axis=0)
    assert np.abs(found - expected).max() <= 1e-3


def test_the_memory_of_the_windows_adds_up() -> None:
    members = [member(FINE, Pointwise()), member(COARSE, Pointwise())]
    both, image = Ensemble(members), scan()
    for axis in range(3):
        sizes = [one.window_bytes(one.prepare(image), axis) for one in members]
        assert both.window_bytes(both.prepare(image), axis) == sum(sizes)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"labels": {"background": [0], "organ": [1], "lesion": [2]}}, "labels"),
        ({"labels": {"background": [0], "tumour": [2], "organ": [1]}}, "labels"),
        ({"channels": ["MRI"]}, "channels"),
    ],
)
def test_plans_of_other_classes_are_refused(changes: Any, what: str) -> None:
    labels = {"labels": {"background": [0], "organ": [1], "tumour": [2]}} | changes
    other = PLAIN.model_copy(update={"name": "other"} | _checked(labels))
    with pytest.raises(AutosegError, match=f"plain and other .*{what}"):
        Ensemble([member(PLAIN, Pointwise()), member(other, Pointwise())])


def _checked(changes: Any) -> dict[str, Any]:
    labels = {name: tuple(values) for name, values in changes["labels"].items()}
    return {"labels": labels, "channels": tuple(changes.get("channels", ["CT"]))}


def test_the_record_names_every_model(tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz", scan().array[0])
    both = Ensemble([member(FINE, Pointwise()), member(COARSE, Pointwise(), Pointwise(slope=2))])
    inputs: Inputs = {"a": (tmp_path / "in" / "a.nii.gz",)}
    outcome = predict_cases(both, FoundInputs(cases=inputs), tmp_path / "out")
    assert list(outcome.predicted) == ["a"]
    found = read_json(tmp_path / "out" / "predictions.json")["ensemble"]
    assert [one["plan_id"] for one in found] == [FINE.id, COARSE.id]
    assert [one["folds"] for one in found] == [["0"], ["0", "1"]]
    alone = Ensemble([member(FINE, Pointwise())])
    with pytest.raises(AutosegError, match=r"predictions\.json.*ensemble"):
        predict_cases(alone, FoundInputs(cases=inputs), tmp_path / "out")
