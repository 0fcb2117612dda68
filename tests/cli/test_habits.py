from __future__ import annotations

from types import ModuleType

import pytest

from autoseg.cli import common, evaluate, pack, plan, predict, train

TABLES = [
    (plan, common.PLAN, ["Task"]),
    (train, common.TRAIN, ["Task", "fold", "0"]),
    (predict, common.PREDICT, ["-i", "in", "-o", "out"]),
    (evaluate, common.EVALUATE, []),
    (pack, common.PACK, ["Task", "-o", "model.zip"]),
]
EACH = [
    (command, option, instead, needed)
    for command, table, needed in TABLES
    for option, instead in table.items()
]


@pytest.mark.parametrize(("command", "option", "instead", "needed"), EACH)
def test_options_of_nnunet_are_answered_with_what_to_write(
    command: ModuleType,
    option: str,
    instead: str,
    needed: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main([*needed, option, "3"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith(f"error: {option} is an option of nnU-Net; {instead}")


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


def test_a_task_named_by_option_is_answered_before_the_missing_argument(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan.main(["-d", "12", "--verify_dataset_integrity"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith("-d is an option of nnU-Net; " + common.PLAN["-d"])


@pytest.mark.parametrize("words", [["3d_fullres", "0"], ["0", "2d"]])
def test_a_configuration_among_the_folds_is_answered(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["12", *words]) == 2
    assert "the configuration is the plan's: --plan NAME" in capsys.readouterr().err


def test_two_folders_without_options_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["truth", "predicted"]) == 2
    told = capsys.readouterr().err
    assert told == (
        "error: 'truth predicted': give one TASK, or two folders as -g TRUTH -p PREDICTED\n"
    )
