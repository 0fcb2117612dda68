from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.cli import common, export
from autoseg.export.networks import FORMATS
from tests.making import tiny_plan
from tests.prediction.making import save_model


def test_the_command_offers_every_format() -> None:
    declared = common.declarations()["autoseg_export"]["options"]["--format"]
    assert declared["default"] == list(FORMATS)
    assert declared["choices"] == [*FORMATS, *export.MODELS]


@pytest.mark.skipif(
    not FORMATS["openvino"].is_installed(), reason="OpenVINO is not installed (extra export)"
)
def test_a_model_of_the_workspace_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tiny_plan()
    save_model(plan, tmp_path / "models" / plan.task / plan.name, "0", "1")
    out = tmp_path / "out"
    arguments = ["--workspace", str(tmp_path), "-f", "1", "-o", str(out), "--format", "openvino"]
    assert export.main(arguments) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert (out / "fold_1.xml").is_file()
    assert not (out / "fold_0.xml").exists()


def test_no_model_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["--workspace", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "has no trained model" in capsys.readouterr().err


def test_a_whole_model_is_exported_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [{"step": "crop_to_nonzero"}, {"step": "z_score"}, {"step": "resample"}]
    plan = tiny_plan(preprocessing=steps)
    save_model(plan, tmp_path / "model", "0")
    out = tmp_path / "out"
    arguments = ["-m", str(tmp_path / "model"), "-o", str(out), "--format", "nnunet"]
    assert export.main([*arguments, "onnx"]) == 2
    assert "--format nnunet" in capsys.readouterr().err
    assert not out.exists()
    assert export.main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert f"nnUNetv2_predict_from_modelfolder -m {out}" in printed.err
    assert (out / "fold_0" / "checkpoint_final.pth").is_file()
    assert export.main(arguments) == 2  # it is there already
