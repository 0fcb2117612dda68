"""Models of nnU-Net and its own results (tests/data/nnunet, by scripts/nnunet_golden.py)."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from autoseg.export.nnunet import axis_order_of, configuration_of
from autoseg.export.nnunet_import import ImportOptions, import_nnunet
from autoseg.image.image import read_image
from autoseg.prediction.model import load_model
from autoseg.prediction.predictor import Predictor

DATA = Path(__file__).parents[1] / "data"
GOLDEN, SCANS = DATA / "nnunet", DATA / "Task004_Hippocampus" / "imagesTs"
NAMES = ("plain", "old_regions", "slices", "cascade")
CONFIGS = {"cascade": "3d_cascade_fullres"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    for name in NAMES:
        import_nnunet(
            ImportOptions(GOLDEN / f"{name}.zip", configuration=CONFIGS.get(name)), folder / name
        )
    return folder


def test_a_model_has_all_of_its_files(models: Path) -> None:
    found = {path.relative_to(models).as_posix() for path in models.glob("plain/**/*.*")}
    names = {"plan.json", "labels.json", "fingerprint.json", "card.json"}
    assert found == {
        f"plain/{name}" for name in (*names, "fold_0/final.safetensors", "fold_1/final.safetensors")
    }
    source = json.loads((models / "plain" / "card.json").read_text())["source"]
    assert source["trainer"] == "nnUNetTrainer_250epochs"
    assert source["checkpoints"]["1"]["epochs"] == 250
    assert (models / "cascade_3d_lowres" / "plan.json").is_file()


@pytest.mark.parametrize("name", NAMES[:3])
def test_logits_equal_nnunets(models: Path, name: str) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    model = load_model(models / name, None, CPU)
    with zipfile.ZipFile(GOLDEN / f"{name}.zip") as file:
        (plans,) = (n for n in file.namelist() if n.endswith("plans.json"))
        found = json.loads(file.read(plans))
    order = axis_order_of(found, configuration_of(found, next(iter(found["configurations"]))))
    with torch.inference_mode():
        logits = model.networks[-1](order.weight_to_ours(torch.from_numpy(golden["patch"])))
    expected = order.weight_to_ours(torch.from_numpy(golden["logits"]))
    assert float((logits - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_label_maps_equal_nnunets(models: Path, name: str, mirror: bool) -> None:
    predictor = Predictor(models / name, device="cpu", mirror=None if mirror else False)
    found = predictor.predict(read_image([SCANS / "hippocampus_040.nii.gz"]))
    path = GOLDEN / f"{name}_hippocampus_040{'_tta' if mirror else ''}.nii.gz"
    expected = sitk.GetArrayFromImage(sitk.ReadImage(path)).T
    assert np.unique(expected).size > 1
    assert (found == expected).mean() > 0.9995
