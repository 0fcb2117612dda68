"""The temperature of probabilities whose truth was drawn with a known one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from autoseg.common.errors import DataError
from autoseg.common.files import read_json
from autoseg.evaluation.evaluate import CrossValidation
from autoseg.evaluation.learn_postprocessing import learn_temperature
from autoseg.evaluation.scores import Summary
from autoseg.image.geometry import Turn
from autoseg.image.label_writer import write_label
from autoseg.models.folder import CALIBRATION, fold_folder
from autoseg.prediction.postprocessing import Reliability
from tests.making import grid, tiny_plan
from tests.prediction.test_postprocessing import Given

PLAN = tiny_plan()
SIZE = (80, 20, 20)


def write_folds(folder: Path, temperature: float, count: int = 3) -> CrossValidation:
    """Folds whose logits are too large (temperature above 1) or too small."""
    PLAN.save(folder / "plan.json")
    for fold in range(count):
        rng = np.random.default_rng(fold)
        logits = rng.normal(0, 3, (3, *SIZE)).astype(np.float32)
        shares = softmax(logits / temperature, axis=0).cumsum(axis=0)
        truth = (rng.random(SIZE) > shares).sum(axis=0).clip(0, 2).astype(np.uint8)
        write_label(folder / "a.nii.gz", truth, grid(SIZE))
        found = Reliability({"a": folder / "a.nii.gz"}, PLAN)
        found.case = "a"
        planes = [Given(logits, slice(x, x + 1)) for x in range(SIZE[0])]
        list(found.watch(planes, Turn(), True))
        found.save(fold_folder(folder, fold) / "validation")
    return CrossValidation(dict.fromkeys(range(count), Summary(())), ())


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_the_temperature_is_found_and_lowers_the_error(tmp_path: Path, temperature: float) -> None:
    rows = learn_temperature(tmp_path, write_folds(tmp_path, temperature))
    found = read_json(tmp_path / CALIBRATION)["temperature"]
    assert found["value"] == temperature
    assert found["plan_id"] == PLAN.id
    assert [row[0] for row in rows[1:]] == list(PLAN.labels)[1:]
    for before, after in found["ece_before_after"].values():
        assert after < 0.3 * before


def test_right_probabilities_keep_the_temperature_1(tmp_path: Path) -> None:
    learn_temperature(tmp_path, write_folds(tmp_path, 1.0))
    assert read_json(tmp_path / CALIBRATION)["temperature"]["value"] == 1.0


def test_models_without_a_record(tmp_path: Path) -> None:
    validation = write_folds(tmp_path, 2.0)
    learn_temperature(tmp_path, validation)
    (fold_folder(tmp_path, 1) / "validation" / "reliability.json").unlink()
    with pytest.raises(DataError, match="not recorded"):
        learn_temperature(tmp_path, validation)
    assert "temperature" not in read_json(tmp_path / CALIBRATION)
