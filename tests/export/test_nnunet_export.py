"""Exports of nnU-Net's own models (tests/data/nnunet) must have the content of the original."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoseg.common.errors import AutosegError
from autoseg.export.nnunet_export import export_nnunet, exported_plan
from autoseg.export.nnunet_import import ImportOptions, import_nnunet
from autoseg.models.checkpoint import load_checkpoint
from autoseg.plan.plan import Plan
from autoseg.prediction.model import load_model
from tests.making import REGIONS, tiny_plan
from tests.prediction.making import save_model

GOLDEN = Path(__file__).parents[1] / "data" / "nnunet"
CPU = torch.device("cpu")
CROP, RESAMPLE = {"step": "crop_to_nonzero"}, {"step": "resample"}
Z_SCORE = {"step": "z_score"}
FIXED = Z_SCORE | {"mean": 10.0, "std": 5.0}
KEPT = {"step": "clip", "window": [-100.0, 200.0], "scaled_scans": "keep"}
STEPS = {"preprocessing": [CROP, Z_SCORE, RESAMPLE]}


def exported(folder: Path, plan: Plan, *folds: str) -> Path:
    save_model(plan, folder / "model", *(folds or ("0",)))
    export_nnunet(load_model(folder / "model", None, CPU), folder / "out")
    return folder / "out"


def checkpoint(path: Path | io.BytesIO) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=False)
    return found


@pytest.mark.parametrize("name", ["plain", "old_regions", "slices"])
def test_weights_have_the_names_and_values_of_nnunet(tmp_path: Path, name: str) -> None:
    import_nnunet(ImportOptions(GOLDEN / f"{name}.zip"), tmp_path / name)
    model = load_model(tmp_path / name, None, CPU)
    export_nnunet(model, tmp_path / "out")
    fold = f"fold_{model.folds[0]}/checkpoint_final.pth"
    with zipfile.ZipFile(GOLDEN / f"{name}.zip") as file:
        (path,) = (n for n in file.namelist() if n.endswith(fold))
        expected = checkpoint(io.BytesIO(file.read(path)))
    found = checkpoint(tmp_path / "out" / fold)
    assert set(found) == set(expected) | {"optimizer_state", "grad_scaler_state", "_best_ema"}
    weights, wanted = found["network_weights"], expected["network_weights"]
    assert set(weights) == set(wanted)
    coarsest = "decoder.seg_layers.0."  # which our networks do not have
    for key, tensor in wanted.items():
        assert weights[key].shape == tensor.shape
        assert key.startswith(coarsest) or torch.equal(weights[key], tensor)


@pytest.mark.parametrize("name", ["plain", "old_regions", "slices"])
def test_an_export_of_an_import_is_the_same_model(tmp_path: Path, name: str) -> None:
    import_nnunet(ImportOptions(GOLDEN / f"{name}.zip"), tmp_path / "one" / "same")
    model = load_model(tmp_path / "one" / "same", None, CPU)
    export_nnunet(model, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "plans.json").read_text())["autoseg"]
    assert about["computed_in_another_way"] == []
    assert about["tile_step"] == 0.5
    assert exported_plan(tmp_path / "out") == model.plan
    (tmp_path / "out" / "checksums.json").unlink()  # as if nnU-Net had written it
    import_nnunet(ImportOptions(tmp_path / "out"), tmp_path / "two" / "same")
    again = load_model(tmp_path / "two" / "same", None, CPU).plan
    assert again.model_copy(update={"provenance": model.plan.provenance}) == model.plan


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"orientation": "RAS", "network": {"convolution_bias": False, "norm": "batch"}},
        {"preprocessing": [CROP]},
        {**REGIONS, "network": {"residual": True, "deep_supervision": False}},
    ],
)
def test_a_round_trip_restores_plan_and_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    plan = tiny_plan(**STEPS | changes)
    out = exported(tmp_path, plan, "0", "all")
    assert (out / "dataset_fingerprint.json").is_file()
    import_nnunet(ImportOptions(out, folds=("0", "all")), tmp_path / "back")
    assert load_model(tmp_path / "back", None, CPU).plan == plan
    for fold in ("fold_0", "fold_all"):
        before, _ = load_checkpoint(tmp_path / "model" / fold / "final.safetensors")
        after, _ = load_checkpoint(tmp_path / "back" / fold / "final.safetensors")
        assert set(before) == set(after)
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_changed_file_is_not_ours(tmp_path: Path) -> None:
    out = exported(tmp_path, tiny_plan(**STEPS))
    plans = json.loads((out / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    (out / "plans.json").write_text(json.dumps(plans))
    assert exported_plan(out) is None


def test_axes_schemes_and_mirroring_are_nnunets(tmp_path: Path) -> None:
    window = {"step": "clip", "window": [-100.0, 200.0], "channel": 0}
    fixed = {"step": "z_score", "mean": 10.0, "std": 5.0, "channel": 0}
    masked = {"step": "z_score", "nonzero": True, "channel": 1}
    plan = tiny_plan(
        task="Task012_Two",
        channels=["CT", "MR"],
        orientation="RAS",
        target_spacing_mm=[1.0, 3.5, 2.0],
        preprocessing=[CROP, window, fixed, masked, RESAMPLE],
        sampling={"patch_size": [8, 16, 32]},
        inference={"overlap": [4, 8, 16], "mirror_axes": [0, 2]},
    )
    out = exported(tmp_path, plan)
    plans = json.loads((out / "plans.json").read_text())
    assert plans["dataset_name"] == "Dataset012_Two"
    assert plans["image_reader_writer"] == "NibabelIOWithReorient"
    assert plans["transpose_forward"] == [1, 0, 2]  # of z, y, x: y is the coarsest
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["spacing"] == [3.5, 2.0, 1.0]
    assert configuration["patch_size"] == [16, 32, 8]
    assert configuration["normalization_schemes"] == ["CTNormalization", "ZScoreNormalization"]
    assert configuration["use_mask_for_norm"] == [False, True]
    wanted = {"mean": 10.0, "std": 5.0, "percentile_00_5": -100.0, "percentile_99_5": 200.0}
    assert plans["foreground_intensity_properties_per_channel"] == {"0": wanted, "1": {}}
    assert plans["autoseg"]["computed_in_another_way"] == [
        "inference.weighting",
        "inference.average",
        "preprocessing.3.fill_holes",
        "preprocessing.4.clip",
    ]
    found = checkpoint(out / "fold_0" / "checkpoint_final.pth")
    assert found["inference_allowed_mirroring_axes"] == (1, 2)  # z and x
    assert found["init_args"]["configuration"] == "3d_fullres"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"orientation": "LPS"}, "orientation"),
        ({"preprocessing": []}, "preprocessing"),
        ({"preprocessing": [CROP, RESAMPLE, Z_SCORE]}, "preprocessing.1"),
        ({"preprocessing": [CROP, {"step": "clip", "window": [0, 1]}, Z_SCORE]}, "preprocessing.1"),
        ({"preprocessing": [CROP, RESAMPLE | {"rounding": "down"}]}, "preprocessing.1.rounding"),
        ({"preprocessing": [CROP, KEPT, FIXED, RESAMPLE]}, "preprocessing.1"),
        (
            {"preprocessing": [CROP, {"step": "rescale", "range": [0, 255]}, RESAMPLE]},
            "preprocessing.1",
        ),
        ({"target_spacing_mm": [1.0, None, 1.0]}, "target_spacing_mm"),
        ({"labels": {"background": [0], "organ": [5], "tumour": [7]}}, "labels"),
        ({"network": {"down": "max_pool"}}, "network.down"),
        ({"network": {"residual": True, "activation_first": True}}, "network.activation_first"),
    ],
)
def test_what_nnunet_cannot_express_is_refused_by_its_key(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    with pytest.raises(AutosegError, match=rf"{key}\b"):
        exported(tmp_path, tiny_plan(**STEPS | changes))
    assert not (tmp_path / "out").exists()


def test_nnunet_predicts_with_an_export(tmp_path: Path) -> None:
    module = pytest.importorskip(
        "nnunetv2.inference.predict_from_raw_data", reason="nnunetv2 is not installed"
    )
    out = exported(tmp_path, tiny_plan(**STEPS))
    predictor = module.nnUNetPredictor(device=CPU, perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(out), (0,))
    scan = np.random.default_rng(0).normal(size=(1, 9, 10, 11)).astype(np.float32)
    found = predictor.predict_single_npy_array(scan, {"spacing": [1.0, 1.0, 1.0]})
    assert found.shape == scan.shape[1:]
