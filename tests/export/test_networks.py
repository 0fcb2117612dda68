from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import autoseg
from autoseg.common.errors import AutosegError, RunError
from autoseg.common.files import read_json
from autoseg.export import networks
from autoseg.export.networks import FORMATS, compare, example_patch, export_model
from autoseg.plan.plan import Plan, load_plan
from autoseg.prediction import backends
from autoseg.prediction.model import Model, load_model
from tests.making import CASCADE, REGIONS, tiny_plan
from tests.prediction.making import save_model

CPU = torch.device("cpu")
RUNS = {"onnx": networks.run_onnx, "openvino": backends.run_openvino}
SLICES: dict[str, Any] = {
    "configuration": "2d",
    "sampling": {"patch_size": [12, 16, 1]},
    "inference": {"overlap": [4, 4, 0]},
    "network": {"strides": [[1, 1, 1], [2, 2, 1]], "kernels": [[3, 3, 1], [3, 3, 1]]},
}
RESIDUAL: dict[str, Any] = {"network": {"residual": True, "norm": "batch", "down": "max_pool"}}
needs = {
    name: pytest.mark.skipif(
        not kind.is_installed(), reason=f"what {name} needs is not installed (extra export)"
    )
    for name, kind in FORMATS.items()
}
each_format = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=mark) for name, mark in needs.items()]
)


def model_in(folder: Path, *folds: str, **changes: Any) -> Model:
    return load_model(save_model(tiny_plan(**changes), folder, *folds), None, CPU)


def random_patches(plan: Plan, batch: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(batch, plan.input_channels, *plan.sampling.patch_size, generator=rng)


@each_format
@pytest.mark.parametrize("changes", [CASCADE, SLICES, RESIDUAL], ids=["cascade", "2d", "residual"])
def test_files_equal_torch_at_any_batch_size(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    model = model_in(tmp_path / "model", "0", **changes)
    out = tmp_path / "exporté 1"
    export_model(model, out, [name])
    for batch in (1, 3):
        patches = random_patches(model.plan, batch)
        with torch.inference_mode():
            expected = model.networks[0](patches)
        got = RUNS[name](out / f"fold_0{FORMATS[name].ending}", patches)
        assert torch.allclose(got, torch.as_tensor(expected), atol=1e-5)
    for path in out.iterdir():  # no path of this machine is in a file
        found = path.read_bytes()
        for secret in (Path(autoseg.__file__).parent, tmp_path, Path(torch.__file__).parent):
            assert str(secret).encode() not in found, path.name


@needs["openvino"]
def test_each_fold_has_its_file_beside_the_plan(tmp_path: Path) -> None:
    model = model_in(tmp_path / "model", "0", "all")
    out = tmp_path / "a" / "out"
    export_model(model, out, ["openvino"])
    networks = {"fold_0.xml", "fold_0.bin", "fold_all.xml", "fold_all.bin"}
    assert {path.name for path in out.iterdir()} == networks | {
        "plan.json",
        "export.json",
        "README.md",
    }
    assert load_plan(out / "plan.json") == model.plan
    files = read_json(out / "export.json")["files"]
    assert set(files) == networks | {"plan.json"}
    for file, facts in files.items():
        assert facts["sha256"] == hashlib.sha256((out / file).read_bytes()).hexdigest()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    assert (out / "fold_0.bin").read_bytes() != (out / "fold_all.bin").read_bytes()


@needs["openvino"]
def test_input_and_output_are_described(tmp_path: Path) -> None:
    steps = [{"step": "clip", "window": [-100, 200]}, {"step": "z_score"}]
    model = model_in(tmp_path / "model", "0", **CASCADE, preprocessing=steps)
    export_model(model, tmp_path / "out", ["openvino"])
    facts = read_json(tmp_path / "out" / "export.json")
    assert facts["plan_id"] == model.plan.id
    assert facts["input"] == {
        "name": "patches",
        "type": "float32",
        "axes": ["batch", "channel", "x", "y", "z"],
        "channels": [
            "CT",
            "mask of label 1 by tiny-3d_lowres",
            "mask of label 2 by tiny-3d_lowres",
        ],
        "orientation": None,
        "patch_size": [8, 8, 8],
        "spacing_mm": [1.0, 1.0, 1.0],
    }
    assert facts["output"]["activation"] == "softmax"
    assert facts["output"]["outputs"] == [
        {"class": "background", "label": 0},
        {"class": "organ", "label": 1},
        {"class": "tumour", "label": 2},
    ]
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for text in (
        "1. clip: window [-100.0, 200.0]",
        "2. z_score: nonzero False",
        "2. tumour (label",
    ):
        assert text in readme


@needs["openvino"]
def test_regions_have_no_output_of_the_background(tmp_path: Path) -> None:
    export_model(model_in(tmp_path / "model", "0", **REGIONS), tmp_path / "out", ["openvino"])
    output = read_json(tmp_path / "out" / "export.json")["output"]
    assert output["activation"] == "sigmoid"
    assert [(each["class"], each["label"]) for each in output["outputs"]] == [
        ("whole", 1),
        ("core", 2),
        ("enhancing", 4),
    ]


@needs["openvino"]
def test_a_file_that_differs_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_in(tmp_path / "model", "0")
    monkeypatch.setattr(networks, "TOLERANCE", -1.0)  # no file can be as near as that
    with pytest.raises(RunError, match=r"fold_0\."):
        export_model(model, tmp_path / "new" / "out", ["openvino"])
    assert list((tmp_path / "new").iterdir()) == []


def test_logits_are_compared_by_size_and_by_class() -> None:
    expected = torch.randn(1, 3, 24, 24, 24, generator=torch.Generator().manual_seed(0)) * 10
    assert compare(expected + 1e-4, expected, False, "a") == pytest.approx(1e-4, rel=0.1)
    with pytest.raises(RunError, match=r"a .*0\.01 .*0\.00"):
        compare(expected + 0.01, expected, False, "a")
    with pytest.raises(RunError, match="nan"):
        compare(expected * float("nan"), expected, False, "a")
    ties = torch.full((1, 2, 100, 10, 10), 5.0)
    turned = ties.clone()
    turned[:, 1, 0] += 1e-5  # within the tolerance, but a hundredth of the classes changes
    with pytest.raises(RunError, match=r"99\.0000%"):
        compare(turned, ties, False, "a")


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(AutosegError, match=re.escape(str(tmp_path / "out"))):
        export_model(model_in(tmp_path / "model", "0"), tmp_path / "out", [])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("name", "package"), [("onnx", "onnxscript"), ("openvino", "openvino")])
def test_a_missing_library_is_named(
    tmp_path: Path, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    model = model_in(tmp_path / "model", "0")
    with pytest.raises(AutosegError, match=rf"--format {name} .*\[export\]"):
        export_model(model, tmp_path / "out", [name])


@pytest.mark.parametrize("channels", [["CT"], ["CT", "MRI"]])
def test_an_example_patch_has_been_preprocessed(channels: list[str]) -> None:
    steps = [
        {"step": "crop_to_nonzero"},
        {"step": "clip", "window": [-1000, 400], "channel": 0},
        {"step": "resample"},
        {"step": "z_score"},
    ]
    plan = tiny_plan(**CASCADE, channels=channels, preprocessing=steps)
    patch = example_patch(plan)
    assert patch.shape == (1, len(channels) + 2, 8, 8, 8)
    assert patch.dtype is torch.float32
    image, masks = patch[0, : len(channels)], patch[0, len(channels) :]
    assert torch.allclose(image.mean(dim=(1, 2, 3)), torch.zeros(len(channels)), atol=1e-5)
    assert torch.allclose(image.std(dim=(1, 2, 3)), torch.ones(len(channels)), atol=1e-2)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert masks.sum(dim=0).max() == 1  # a voxel lies in one part
    assert torch.equal(example_patch(plan), patch)
