"""Models of nnU-Net with random weights, and nnU-Net's own results, for tests/data/nnunet.

Runs in an environment with nnunetv2: `nnunet_golden.py IMAGES OUT` with a folder of
`CASE.nii.gz`. Writes `NAME.zip` as nnU-Net exports models, `NAME_CASE_tta.nii.gz` and
`NAME_CASE.nii.gz` (label maps with and without mirroring), and `NAME.npz` (a patch and its logits).
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import (  # type: ignore[import-not-found]
    nnUNetPredictor,
)
from nnunetv2.utilities.get_network_from_plans import (  # type: ignore[import-not-found]
    get_network_from_plans,
)
from nnunetv2.utilities.label_handling.label_handling import (  # type: ignore[import-not-found]
    determine_num_input_channels,
)
from nnunetv2.utilities.plans_handling.plans_handler import (  # type: ignore[import-not-found]
    PlansManager,
)

DATASET, SCANS = "Dataset004_Hippocampus", 1
CLASSES = {"labels": {"background": 0, "Anterior": 1, "Posterior": 2}}
REGIONS = {
    "labels": {"background": 0, "whole": [1, 2], "Posterior": 2, "ignore": 3},
    "regions_class_order": [1, 2],
}
INTENSITIES = {"mean": 300.0, "std": 90.0, "median": 290.0, "min": 0.0, "max": 900.0}
INTENSITIES |= {"percentile_00_5": 30.0, "percentile_99_5": 520.0}


def architecture(strides: list[list[int]], residual: bool = False) -> dict[str, Any]:
    """A small U-Net; kernels are flat before the first axis is halved."""
    stages, axes = len(strides), len(strides[0])
    blocks = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    kernels = [
        [3] * axes if max(strides[: s + 1])[0] > 1 or axes == 2 else [1, 3, 3]
        for s in range(stages)
    ]
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet."
        + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [4 * 2**stage for stage in range(stages)],
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": kernels,
            "strides": strides,
            blocks: [1, 2, 1][:stages],
            "n_conv_per_stage_decoder": [2, 1][: stages - 1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(patch: list[int], spacing: list[float], **more: Any) -> dict[str, Any]:
    """A configuration of nnU-Net's plans."""
    found: dict[str, Any] = {"preprocessor_name": "DefaultPreprocessor", "batch_size": 2}
    found |= {"patch_size": patch, "spacing": spacing, "batch_dice": False}
    found |= {"normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False]}
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        found[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        found[f"resampling_fn_{what}_kwargs"] = {"is_seg": what == "seg", "order": order}
        found[f"resampling_fn_{what}_kwargs"] |= {"order_z": 0, "force_separate_z": None}
    return found | more


def old_format(found: dict[str, Any]) -> dict[str, Any]:
    """The same configuration as plans before nnU-Net 2.4 state it."""
    values = found.pop("architecture")["arch_kwargs"]
    return found | {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 12,
        "n_conv_per_stage_encoder": values["n_conv_per_stage"],
        "n_conv_per_stage_decoder": values["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [1, 2, 2],
        "pool_op_kernel_sizes": values["strides"],
        "conv_kernel_sizes": values["kernel_sizes"],
    }


FLAT, CUBE = [[1, 1, 1], [1, 2, 2], [2, 2, 2]], [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
SQUARE = [[1, 1], [2, 2], [2, 1]]
# name -> configurations, which of them, data set, transpose_forward, mirror axes, folds, trainer
MODELS: dict[str, tuple[Any, ...]] = {
    "plain": (
        {
            "base": configuration([16, 24, 20], [1.25, 0.9, 1.1], architecture=architecture(FLAT)),
            "3d_fullres": {"inherits_from": "base", "batch_size": 4},
        },
        *("3d_fullres", CLASSES, [1, 0, 2], (0, 2), (0, 1), "nnUNetTrainer_250epochs"),
    ),
    "old_regions": (
        {
            "3d_fullres": old_format(
                configuration(
                    *([10, 28, 24], [3.4, 1.0, 0.9]),
                    architecture=architecture(FLAT),
                    normalization_schemes=["CTNormalization"],
                )
            )
        },
        *("3d_fullres", REGIONS, [0, 1, 2], None, ("all",), "nnUNetTrainerNoMirroring"),
    ),
    "slices": (
        {
            "2d": configuration(
                *([28, 18], [1.1, 0.8]),
                architecture=architecture(SQUARE, residual=True),
                normalization_schemes=["RescaleTo01Normalization"],
            )
        },
        *("2d", CLASSES, [2, 0, 1], (0, 1), (0,), "nnUNetTrainerBN"),
    ),
    "cascade": (
        {
            "3d_lowres": configuration(
                *([16, 20, 16], [2.1, 1.9, 2.0]),
                architecture=architecture(CUBE, residual=True),
                use_mask_for_norm=[True],
            ),
            "3d_fullres": configuration(
                *([24, 28, 20], [1.0, 1.2, 1.0]), architecture=architecture(CUBE)
            ),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        *("3d_cascade_fullres", CLASSES, [0, 1, 2], (0, 1, 2), (0,), "nnUNetTrainer"),
    ),
}


def write_model(folder: Path, name: str, chosen: str) -> Any:
    """Write a folder TRAINER__PLANS__CONFIG; returns its last network."""
    configurations, _, dataset, forward, mirror, folds, trainer = MODELS[name]
    plans = {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": forward,
        "transpose_backward": [forward.index(axis) for axis in range(3)],
        "configurations": configurations,
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
    }
    data = {"channel_names": {"0": "MRI"}, **dataset, "numTraining": 1, "file_ending": ".nii.gz"}
    folder.mkdir(parents=True)
    for file, values in (("plans", plans), ("dataset", data), ("dataset_fingerprint", {})):
        (folder / f"{file}.json").write_text(json.dumps(values), encoding="utf-8")
    manager = PlansManager(copy.deepcopy(plans))
    found = manager.get_configuration(chosen)
    labels = manager.get_label_manager(data)
    values = copy.deepcopy(found.network_arch_init_kwargs)
    if trainer == "nnUNetTrainerBN":
        values["norm_op"] = values["norm_op"].replace("instancenorm.Instance", "batchnorm.Batch")
    for fold in folds:
        torch.manual_seed(sum(map(ord, f"{name} {chosen} {fold}")))
        network = get_network_from_plans(
            *(found.network_arch_class_name, values, found.network_arch_init_kwargs_req_import),
            determine_num_input_channels(manager, found, data),
            labels.num_segmentation_heads,
            deep_supervision=True,
        )
        with torch.no_grad():
            for key, parameter in network.named_parameters():
                if parameter.ndim == 1:
                    parameter += 0.2 * torch.randn_like(parameter)
                elif "seg_layers" in key:
                    parameter *= 20
        checkpoint = {
            "network_weights": network.state_dict(),
            "optimizer_state": torch.optim.SGD(network.parameters(), 0.01).state_dict(),
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float64(0.5)]},
            "_best_ema": np.float32(0.5),
            "current_epoch": 250,
            "init_args": {"configuration": chosen, "fold": fold, "device": torch.device("cuda")},
            "trainer_name": trainer,
            "inference_allowed_mirroring_axes": mirror,
        }
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return network.eval()


def predict(
    folder: Path, name: str, scans: list[Path], out: Path, mirror: bool, previous: Any
) -> None:
    """nnU-Net's own label maps."""
    predictor = nnUNetPredictor(use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), MODELS[name][5])
    predictor.predict_from_files_sequential(
        [[str(scan)] for scan in scans],
        [str(out / scan.name.removesuffix("_0000.nii.gz")) for scan in scans],
        folder_with_segs_from_prev_stage=previous,
    )


def make(name: str, scans: list[Path], out: Path, work: Path) -> None:
    """Write the files of one model."""
    _, chosen, _, _, _, _, trainer = MODELS[name]
    folder = work / name / DATASET / f"{trainer}__nnUNetPlans__{chosen}"
    previous = None
    for mirror in (True, False):
        label = work / f"{name}_{mirror}"
        label.mkdir()
        if name == "cascade":
            low = folder.with_name(f"{trainer}__nnUNetPlans__3d_lowres")
            previous = str(work / f"low_{mirror}")
            if mirror:
                write_model(low, name, "3d_lowres")
            Path(previous).mkdir()
            predict(low, name, scans, Path(previous), mirror, None)
        if mirror:
            network = write_model(folder, name, chosen)
        predict(folder, name, scans, label, mirror, previous)
        for file in label.glob("*.nii.gz"):
            end = "_tta.nii.gz" if mirror else ".nii.gz"
            file.rename(out / f"{name}_{file.name.removesuffix('.nii.gz')}{end}")
    with zipfile.ZipFile(out / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted((work / name).rglob("*.*")):
            if path.is_file():
                packed.write(path, path.relative_to(work / name))
    patch = (
        MODELS[name][0][chosen].get("patch_size")
        or MODELS[name][0][MODELS[name][0][chosen]["inherits_from"]]["patch_size"]
    )
    first = next(network.parameters())
    given = torch.randn(1, first.shape[1], *patch)
    network.decoder.deep_supervision = False
    with torch.inference_mode():
        np.savez_compressed(out / f"{name}.npz", patch=given.numpy(), logits=network(given).numpy())


def main() -> None:
    """The command line."""
    images, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work, scans = Path(folder), []
        for scan in sorted(images.glob("*.nii.gz"))[:SCANS]:
            scans.append(work / f"{scan.name.removesuffix('.nii.gz')}_0000.nii.gz")
            scans[-1].symlink_to(scan.resolve())
        for name in MODELS:
            make(name, scans, out, work)


if __name__ == "__main__":
    main()
