from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoseg.common.errors import AutosegError
from autoseg.models.checkpoint import save_checkpoint
from autoseg.models.folder import FINAL, FolderFiles
from autoseg.networks.unet import build_network
from autoseg.prediction.model import load_model
from tests.making import tiny_plan
from tests.prediction.making import save_model

CPU = torch.device("cpu")
PLAN = tiny_plan()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(PLAN, tmp_path / "Modèle 1", "0", "2", "all")


def one_line(error: pytest.ExceptionInfo[AutosegError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_loads_all_finished_folds_for_evaluation(folder: Path) -> None:
    (folder / "fold_1").mkdir()  # begun, not finished
    model = load_model(folder, None, CPU)
    assert model.folds == ("0", "2", "all")
    assert model.plan == PLAN
    for seed, network in enumerate(model.networks):
        assert not network.training
        torch.manual_seed(seed)
        expected = build_network(PLAN).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


def test_loads_the_named_folds_in_their_order(folder: Path) -> None:
    assert load_model(folder, ["2", "0"], CPU).folds == ("2", "0")
    assert FolderFiles(folder).folds() == ["0", "2", "all"]


def test_a_missing_fold_is_named_with_the_finished_ones(folder: Path) -> None:
    with pytest.raises(AutosegError) as error:
        load_model(folder, ["0", "1", "4"], CPU)
    assert "folds 1, 4" in one_line(error)
    assert "0, 2, all" in one_line(error)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_plan_is_not_a_model(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "some where"
    if exists:
        path.mkdir()
    with pytest.raises(AutosegError) as error:
        load_model(path, None, CPU)
    assert one_line(error).startswith(f"{path} ")
    assert "plan.json" in one_line(error)


def test_a_model_without_finished_fold_says_how_to_train(folder: Path) -> None:
    for fold in FolderFiles(folder).folds():
        (folder / f"fold_{fold}" / FINAL).unlink()
    with pytest.raises(AutosegError) as error:
        load_model(folder, None, CPU)
    assert "autoseg_train Task001_Tiny fold 0" in one_line(error)


def test_weights_of_another_plan_are_refused(folder: Path) -> None:
    other = tiny_plan(training={"seed": 1})
    other.save(folder / "plan.json")
    with pytest.raises(AutosegError) as error:
        load_model(folder, ["0"], CPU)
    message = one_line(error)
    assert message.startswith(str(folder / "fold_0" / FINAL))
    assert PLAN.id in message
    assert other.id in message


@pytest.mark.parametrize("damage", ["empty", "half", "text"])
def test_damaged_weights_are_named(folder: Path, damage: str) -> None:
    path = folder / "fold_2" / FINAL
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"{}" * 99}[damage])
    with pytest.raises(AutosegError) as error:
        load_model(folder, None, CPU)
    assert one_line(error).startswith(f"{path} ")


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    wider = tiny_plan(network={"features": [3, 4]})
    path = folder / "fold_0" / FINAL
    save_checkpoint(path, dict(build_network(wider).state_dict()), {"plan_id": PLAN.id})
    with pytest.raises(AutosegError) as error:
        load_model(folder, ["0"], CPU)
    assert one_line(error).startswith(f"{path} ")


def test_weights_without_a_state_are_refused(folder: Path) -> None:
    from safetensors.torch import save_file

    path = folder / "fold_0" / FINAL
    save_file(dict(build_network(PLAN).state_dict()), path)
    with pytest.raises(AutosegError) as error:
        load_model(folder, ["0"], CPU)
    assert one_line(error).startswith(f"{path} ")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": 99}'])
def test_a_damaged_plan_is_named(folder: Path, text: str) -> None:
    (folder / "plan.json").write_text(text)
    with pytest.raises(AutosegError) as error:
        load_model(folder, None, CPU)
    assert one_line(error).startswith(str(folder / "plan.json"))
