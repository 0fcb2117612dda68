from __future__ import annotations

from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from numpy.typing import NDArray

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.image.image import Image
from autoseg.prediction.batch import predict_cases
from autoseg.prediction.inputs import Inputs
from autoseg.prediction.native_grid import ENDING, ProbabilityFile, probability_file
from autoseg.prediction.predictor import Predictor
from tests.dataset.making import write_scan
from tests.making import REGIONS, grid, tiny_plan
from tests.prediction.making import Layers, Pointwise, Sided, model_of

STEPS = [{"step": "crop_to_nonzero"}, {"step": "resample", "anisotropy": None}]


def scan(shape: tuple[int, int, int]) -> Image:
    array = np.zeros((1, *shape), np.float32)
    array[0, 1:-2, 2:, :-1] = np.random.default_rng(0).uniform(
        0.2, 2, array[0, 1:-2, 2:, :-1].shape
    )
    return Image(array, grid(shape))


def computed(model: Predictor, image: Image) -> NDArray[np.float32]:
    """All probabilities at once, class by class, along x."""
    out = np.zeros((model.classes.outputs, *image.geometry.size), np.float32)
    for planes in model.planes(model.prepare(image), 0):
        whole = (slice(0, planes.shape[1]), slice(0, planes.shape[2]))
        for index, share in enumerate(out):
            share[planes.rows] = planes.shares(index, whole)
    return out


@pytest.mark.parametrize("steps", [[], STEPS])
@pytest.mark.parametrize("shape", [(45, 9, 8), (9, 37, 10), (8, 9, 33), (5, 6, 4)])
def test_the_file_holds_what_was_computed(tmp_path: Path, steps: Any, shape: Any) -> None:
    plan = tiny_plan(preprocessing=steps, target_spacing_mm=[1.3, 0.8, 1.1])
    model, image = Predictor(model_of(plan, Sided()), device="cpu"), scan(shape)
    label = model.segment(model.prepare(image), tmp_path / "a.b2nd")
    file = blosc2.open(str(tmp_path / "a.b2nd"), mode="r")
    assert (file.shape, file.dtype) == ((3, *shape), np.float16)
    assert file.vlmeta["classes"] == ["background", "organ", "tumour"]
    found, expected = file[:], computed(model, image)
    assert np.abs(found - expected).max() <= 6e-4  # half the distance of float16 values below 1
    assert np.abs(found.sum(axis=0, dtype=float) - 1).max() <= 2e-3
    assert (file[2] == found[2]).all()
    ranked = np.sort(found, axis=0)
    clear = ranked[-1] - ranked[-2] > 2e-3
    assert (label == found.argmax(axis=0))[clear].all()
    assert (label == model.predict(image)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a.b2nd"]


def test_of_regions_there_is_no_background(tmp_path: Path) -> None:
    model = Predictor(model_of(tiny_plan(**REGIONS, preprocessing=STEPS), Layers(3)), device="cpu")
    image = scan((9, 8, 20))
    model.segment(model.prepare(image), tmp_path / "a.b2nd")
    file = blosc2.open(str(tmp_path / "a.b2nd"), mode="r")
    assert file.vlmeta["classes"] == ["whole", "core", "enhancing"]
    assert np.abs(file[:] - computed(model, image)).max() <= 6e-4
    assert not file[:, 0].any()  # outside of the crop


def test_each_chunk_is_written_once_and_smooth_probabilities_become_small(tmp_path: Path) -> None:
    size = (40, 32, 30)
    with probability_file(tmp_path / "a.b2nd", ["a", "b"], size, axis=2) as file:
        assert file.array.chunks == (1, 40, 32, 16)
        for start in (0, 16):
            rows = slice(start, min(start + 16, 30))
            for index in (0, 1):
                file.write(index, rows, np.full((rows.stop - start, 32, 40), index, np.float32))
    assert (blosc2.open(str(tmp_path / "a.b2nd"), mode="r")[1] == 1).all()
    assert (tmp_path / "a.b2nd").stat().st_size < 2 * 40 * 32 * 30 * 2 / 50


def test_an_interrupted_file_does_not_appear(tmp_path: Path) -> None:
    (tmp_path / "a.b2nd").write_bytes(b"old")

    def interrupted() -> None:
        with probability_file(tmp_path / "a.b2nd", ["a"], (4, 4, 4)) as file:
            file.write(0, slice(0, 4), np.ones((4, 4, 4), np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a.b2nd").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_of_blosc2_names_the_file(tmp_path: Path) -> None:
    class Full:
        def __setitem__(self, *_: Any) -> None:
            raise RuntimeError("no space")

    file = ProbabilityFile(tmp_path / "a.b2nd", Full(), axis=0)
    with pytest.raises(AutosegError, match=r"cannot write .*a\.b2nd: no space; choose a folder"):
        file.write(0, slice(0, 4), np.ones((4, 4, 4), np.float32))


def test_cases_get_a_second_file_that_is_recorded_and_made_again_if_lost(tmp_path: Path) -> None:
    out, image = tmp_path / "out", scan((9, 8, 7))
    write_scan(tmp_path / "in" / "a.nii.gz", image.array[0])
    inputs: Inputs = {"a": (tmp_path / "in" / "a.nii.gz",)}
    model = Predictor(model_of(tiny_plan(), Pointwise()), device="cpu")
    predict_cases(model, inputs, out, overwrite=False)
    assert not (out / f"a{ENDING}").exists()
    for _ in range(2):
        outcome = predict_cases(model, inputs, out, overwrite=False, save_probabilities=True)
        assert list(outcome.predicted) == ["a"]
        files = read_json(out / "predictions.json")["cases"]["a"]["files"]
        assert set(files) == {"a.nii.gz", f"a{ENDING}"}
        assert files[f"a{ENDING}"]["bytes"] == (out / f"a{ENDING}").stat().st_size
        again = predict_cases(model, inputs, out, overwrite=False, save_probabilities=True)
        assert again.skipped == ("a",)
        (out / f"a{ENDING}").unlink()
