"""Options of nnU-Net: an error that says what to write instead."""

from __future__ import annotations

from types import ModuleType

import pytest

from autoseg.cli import common, evaluate, pack, plan, predict, train

OPTIONS = {name: of.get("nnunet") for name, of in common.declarations().items()}
TABLES = [
    (plan, OPTIONS["autoseg_plan"], ["Task"]),
    (train, OPTIONS["autoseg_train"], ["Task", "fold", "0"]),
    (predict, OPTIONS["autoseg_predict"], ["-i", "in", "-o", "out"]),
    (evaluate, OPTIONS["autoseg_evaluate"], []),
    (pack, OPTIONS["autoseg_pack"], ["Task", "-o", "model.zip"]),
]
EACH = [
    (command, option, instead, needed)
    for command, table, needed in TABLES
    for option, instead in table.items()
]


@pytest.mark.parametrize(("command", "option", "instead", "needed"), EACH)
def test_options_of_nnunet_are_errors_with_advice(
    command: ModuleType,
    option: str,
    instead: str,
    needed: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main([*needed, option, "3"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f"error: {option} is an option of nnU-Net; {instead}")


@pytest.mark.parametrize(("command", "table", "needed"), TABLES)
def test_help_does_not_list_them(
    command: ModuleType,
    table: dict[str, str],
    needed: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(["--help"]) == 0
    words = capsys.readouterr().out.replace("[", " ").replace(",", " ").split()
    assert not set(table) & set(words)


def test_an_option_for_the_task_comes_before_the_missing_argument(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan.main(["-d", "12", "--verify_dataset_integrity"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("-d is an option of nnU-Net; " + OPTIONS["autoseg_plan"]["-d"])


@pytest.mark.parametrize("words", [["3d_fullres", "0"], ["0", "2d"]])
def test_a_configuration_among_the_folds(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["12", *words]) == 2
    assert "--plan NAME" in capsys.readouterr().err


def test_two_folders_without_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["truth", "predicted"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: 'truth predicted': ")
    assert "-g REFERENCE -p PREDICTED" in line
