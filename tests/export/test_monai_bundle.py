from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoseg.common.errors import AutosegError
from autoseg.export.monai_bundle import export_monai
from autoseg.export.networks import example_patch
from autoseg.image.image import read_image, read_label
from autoseg.plan.plan import Plan
from autoseg.prediction.model import Model, load_model
from autoseg.prediction.predictor import Predictor
from tests.dataset.making import write_case
from tests.making import CASCADE, REGIONS, tiny_plan
from tests.prediction.making import save_model

CPU = torch.device("cpu")
CROP, RESAMPLE = {"step": "crop_to_nonzero"}, {"step": "resample"}
Z_SCORE = {"step": "z_score"}
CLIP = {"step": "clip", "window": [-1.0, 3.0]}
STEPS = {"preprocessing": [CROP, CLIP, Z_SCORE, RESAMPLE]}


def bundle(folder: Path, plan: Plan) -> tuple[Model, Path]:
    save_model(plan, folder / "model", "0", "1")
    model = load_model(folder / "model", None, CPU)
    export_monai(model, folder / "bundle")
    return model, folder / "bundle"


@pytest.mark.parametrize(
    "changes", [{}, REGIONS, {"inference": {"average": "logits", "mirror_axes": [0]}}]
)
def test_the_network_averages_as_we_do(tmp_path: Path, changes: dict[str, Any]) -> None:
    model, folder = bundle(tmp_path, tiny_plan(**STEPS | changes))
    network = torch.export.unflatten(torch.export.load(folder / "models" / "model.pt2")).eval()
    patches = torch.cat([example_patch(model.plan, seed) for seed in range(3)])
    with torch.inference_mode():
        found = network(patches)
    expected = Predictor(model, device="cpu", backend="torch").probabilities(patches)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_no_path_of_this_machine_is_in_the_bundle(tmp_path: Path) -> None:
    _, folder = bundle(tmp_path, tiny_plan(**STEPS))
    assert (
        str(Path(__file__).parents[2]).encode()
        not in (folder / "models" / "model.pt2").read_bytes()
    )


def test_the_transforms_are_the_plans_steps(tmp_path: Path) -> None:
    plan = tiny_plan(**STEPS, channels=["CT", "MR"], orientation="LPS")
    _, folder = bundle(tmp_path, plan)
    config = json.loads((folder / "configs" / "inference.json").read_text())
    names = [each["_target_"] for each in config["preprocessing"]["transforms"]]
    assert names == [
        "LoadImaged",
        "Orientationd",
        "CopyItemsd",
        "ConcatItemsd",
        "CropForegroundd",
        "ScaleIntensityRanged",
        "NormalizeIntensityd",
        "Lambdad",
        "ConcatItemsd",
        "EnsureTyped",
    ]
    assert config["inferer"]["roi_size"] == [8, 8, 8]
    assert config["inferer"]["overlap"] == [0.5, 0.5, 0.5]
    about = json.loads((folder / "configs" / "metadata.json").read_text())
    inputs = about["network_data_format"]["inputs"]["image"]
    assert inputs["channel_def"] == {"0": "CT", "1": "MR"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (CASCADE, "previous_stage"),
        ({"target_spacing_mm": [1.0, 1.0, 5.0]}, "preprocessing.3.anisotropy"),
        ({"preprocessing": [CLIP | {"scaled_scans": "keep"}]}, "preprocessing.0.scaled_scans"),
        (
            {"preprocessing": [CLIP, Z_SCORE | {"nonzero": True}]},
            "preprocessing.1.nonzero",
        ),
        (
            {"preprocessing": [Z_SCORE | {"nonzero": True, "fill_holes": True}]},
            "preprocessing.0.fill_holes",
        ),
    ],
)
def test_what_monai_cannot_express_is_refused_by_its_key(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    with pytest.raises(AutosegError, match=rf"{key}\b"):
        bundle(tmp_path, tiny_plan(**STEPS | changes))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.skipif(not all(map(find_spec, ("monai", "ignite"))), reason="MONAI is not installed")
@pytest.mark.parametrize("changes", [{}, REGIONS, {"channels": ["CT", "MR"]}])
def test_monai_predicts_as_we_do(tmp_path: Path, changes: dict[str, Any]) -> None:
    plan = tiny_plan(**STEPS | changes, target_spacing_mm=[1.2, 1.05, 1.1], orientation="LPS")
    model, folder = bundle(tmp_path, plan)
    scan = np.random.default_rng(0).normal(size=(7, 8, 7)).astype(np.float32)
    raw, files = tmp_path / "raw", []
    write_case(raw, "case", scan, np.zeros(scan.shape, np.uint8))
    (tmp_path / "in").mkdir()
    (written,) = (raw / "imagesTr").iterdir()
    for channel in range(len(plan.channels)):
        files.append(tmp_path / "in" / f"case_{channel:04d}.nii.gz")
        files[-1].write_bytes(written.read_bytes())
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(folder)]
    command += ["--config_file", str(folder / "configs" / "inference.json")]
    command += ["--dataset_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out")]
    subprocess.run(command, check=True)
    found, _ = read_label(tmp_path / "out" / "case.nii.gz")
    expected = Predictor(model, device="cpu", backend="torch").predict(read_image(tuple(files)))
    assert (found == expected).mean() >= 0.999
