"""Models of nnU-Net and its own results (tests/data/nnunet, by scripts/nnunet_golden.py)."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from autoseg.common.errors import AutosegError
from autoseg.export.nnunet import axis_order_of, configuration_of
from autoseg.export.nnunet_import import ImportOptions, import_nnunet
from autoseg.image.image import read_image
from autoseg.models.checkpoint import save_checkpoint
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


def test_saved_probabilities_belong_to_the_label_map(models: Path, tmp_path: Path) -> None:
    for name in ("plain", "old_regions"):
        predictor = Predictor(models / name, device="cpu", mirror=False)
        image = read_image([SCANS / "hippocampus_040.nii.gz"])
        file = tmp_path / f"{name}.b2nd"
        label = predictor.segment(predictor.prepare(image), save=file)
        found = np.asarray(blosc2.open(str(file))[:], np.float32)
        if name == "plain":
            assert np.allclose(found.sum(axis=0), 1, atol=2e-3)
            assert (found.argmax(axis=0) == label).mean() > 0.999
        else:
            assert ((found[0] > 0.5) == (label > 0))[found[1] < 0.49].mean() > 0.999


def changed(tmp_path: Path, file: str, *path: Any, value: Any) -> Path:
    """The folder of the model `plain` with another value in a JSON file."""
    with zipfile.ZipFile(GOLDEN / "plain.zip") as packed:
        packed.extractall(tmp_path)
    (folder,) = tmp_path.glob("*/*__*")
    values = inner = json.loads((folder / file).read_text())
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / file).write_text(json.dumps(values))
    return folder


BASE = ("plans.json", "configurations", "base")
NETWORK = (*BASE, "architecture", "arch_kwargs")


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ((*BASE, "architecture", "network_class_name"), "x.architectures.PrimusM", "PrimusM"),
        ((*BASE, "preprocessor_name"), "OwnPreprocessor", "OwnPreprocessor"),
        ((*BASE, "resampling_fn_data"), "resample_torch_fornnunet", "resample_torch_fornnunet"),
        ((*BASE, "resampling_fn_probabilities_kwargs", "order"), 3, "resampling_fn_probabilities"),
        ((*BASE, "normalization_schemes", 0), "OwnScheme", "OwnScheme"),
        (("plans.json", "image_reader_writer"), "NaturalImage2DIO", "NaturalImage2DIO"),
        (("plans.json", "label_manager"), "OwnManager", "OwnManager"),
        ((*BASE, "inherits_from"), "3d_fullres", "inherit"),
        ((*NETWORK, "norm_op"), "torch.nn.GroupNorm", "GroupNorm"),
        ((*NETWORK, "nonlin"), "torch.nn.GELU", "GELU"),
        ((*NETWORK, "own"), 3, "own"),
        ((*NETWORK, "kernel_sizes"), [[5, 5, 5]] * 3, "network.kernels"),
        ((*NETWORK, "features_per_stage"), [4, 8, 24], "nnUNetTrainer_250epochs"),
        ((*BASE, "patch_size"), [16, 23, 20], "sampling.patch_size"),
        (("dataset.json", "labels", "Posterior"), 4, "consecutive"),
        (("dataset.json", "labels"), [1], "dataset.json"),
        (("plans.json", "configurations"), None, "plans.json"),
    ],
)
def test_what_has_no_equal_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Path, path: Any, value: Any, named: str
) -> None:
    state: dict[str, Any] = {
        "trainer_name": "nnUNetTrainer_250epochs",
        "configuration": "3d_fullres",
    }
    state |= {"mirror_axes": [0, 2], "epochs": 250}
    weights = {"decoder.transpconvs.0.weight": torch.ones(1, 1, 1, 1, 1)}
    monkeypatch.setattr(
        "autoseg.export.nnunet_import.read_untrusted",
        lambda path, target: save_checkpoint(target, weights, state),
    )
    folder = changed(tmp_path, *path, value=value)
    with pytest.raises(AutosegError, match=re.escape(named)) as error:
        import_nnunet(ImportOptions(folder), tmp_path / "out")
    assert not re.search(r"\n|AutosegError", str(error.value))
    assert not (tmp_path / "out").exists()


def test_a_model_of_version_1_is_named(tmp_path: Path) -> None:
    old = tmp_path / "nnUNetTrainerV2__nnUNetPlansv2.1"
    (old / "fold_0").mkdir(parents=True)
    (old / "plans.pkl").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as file:
        file.write(old / "plans.pkl", f"nnUNet/3d_fullres/Task004/{old.name}/plans.pkl")
    for source in (old, tmp_path, tmp_path / "old.zip"):
        with pytest.raises(AutosegError, match="v1"):
            import_nnunet(ImportOptions(source), tmp_path / "out")


def test_folds_without_checkpoint_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(tmp_path, "plans.json", "plans_name", value="own")
    (folder / "fold_2").mkdir()
    import_nnunet(ImportOptions(folder), tmp_path / "out")
    assert re.search(r"fold 2 left out", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["../evil.json", "/tmp/evil.json", "a\\..\\evil.json"])
def test_a_zip_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/plans.json", "{}")
        file.writestr(name, "{}")
    with pytest.raises(AutosegError, match="unsafe name"):
        import_nnunet(ImportOptions(path), tmp_path / "out")


def test_a_zip_cannot_fill_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/plans.json", b" " * 10_000_000)
    with pytest.raises(AutosegError, match="expands"):
        import_nnunet(ImportOptions(path), tmp_path / "out")
