"""The front door: wrong commands are answered by the right one, and the same options everywhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from autoseg.__main__ import COMMANDS, main
from autoseg.cli import common
from autoseg.cli.train import main as train
from autoseg.evaluation.scores import Summary
from autoseg.image.image import read_image
from autoseg.plan.plan import Plan, load_plan
from autoseg.workflow.workspace import ENVIRONMENT_VARIABLE
from tests.cli.making import settings, write_ct
from tests.dataset.making import touch, write_scan
from tests.making import tiny_plan
from tests.prediction.making import save_model

TASK, ONE = "Task001_COVID", ["--processes", "1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planned task, another one, models of a third, and some scans."""
    root = tmp_path_factory.mktemp("front")
    write_ct(root / "raw" / TASK, cases=3)
    (root / "raw" / "Task002_Heart").mkdir()
    assert (
        main(
            [
                "plan",
                TASK,
                *settings("training.epochs=2", "splits.folds=2"),
                "--no-reference",
                "--workspace",
                str(root),
                *ONE,
            ]
        )
        == 0
    )
    for name in ("default", "long"):
        plan = tiny_plan(task="Task003_Liver", name=name)
        save_model(plan, root / "models" / plan.task / name, "0")
    for name in ("a", "b"):
        write_scan(root / "in" / f"{name}.nii.gz", np.mgrid[:8, :8, :8][0].astype(np.float32))
    touch(root / "photos", "a.jpg")
    return root


@pytest.fixture
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(root))
    return root


# What somebody types -> what the one line must name: the right next command, or its part.
ANSWERS = [
    ("trian Task001", "did you mean train?"),
    ("plan COVID", f"did you mean {TASK}?"),
    ("plan covdi", f"did you mean {TASK}?"),
    ("plan Task001_CVOID", f"did you mean {TASK}?"),
    ("train heart fold 0", "did you mean Task002_Heart?"),
    ("plan", f"tasks: {TASK}, Task002_Heart, Task003_Liver"),
    ("plan Task001 Task002", "give one TASK"),
    ("plan Task001 --time-buget 5m", "did you mean --time-budget?"),
    ("plan Task001 --time-budget soon", "as in 90s, 5m or 1.5h"),
    ("plan Task001 --planner resencm", "did you mean resenc_m?"),
    ("plan Task001 --config 3d_full", "did you mean 3d_fullres?"),
    ("plan Task001 --set training.epoch=3", "did you mean 'epochs'"),
    ("plan Task001 --device gpu", "choose cpu"),
    ("train Task001 fold 0 --device cuda", "choose cpu"),
    ("predict -t Task003 -p long -i in -o out --device cdua", "did you mean cuda?"),
    ("train Task002 fold 0", "run: autoseg_plan Task002_Heart"),
    ("train Task001", "write `fold 0`"),
    ("train Task001 3d_fullres 0", "--plan NAME"),
    ("train Task001 fold 0 --plan defualt", "did you mean default?"),
    ("train Task001 fold 9", "choose 0 to 1, or all"),
    ("evaluate in out", "-g REFERENCE -p PREDICTED"),
    ("evaluate -g in", "both -g REFERENCE and -p PREDICTED"),
    ("evaluate -g in/a.nii.gz -p in", "give two files or two folders"),
    ("evaluate Task001", f"run: autoseg_train {TASK} fold 0"),
    ("evaluate -g in -p in --labels tumour", "--labels tumour: give NAME=VALUE"),
    ("experiment covid_sensitivty", "did you mean covid_sensitivity?"),
    ("plan Task001 --reference COVID_no_augment", "did you mean Task001_COVID"),
    ("predict -i in", "-o out/"),
    ("predict -i in -o out", "-t Task003_Liver -p default, -t Task003_Liver -p long"),
    ("predict -i in -o out -t Task003 -p lang", "did you mean long?"),
    ("predict -i in -o out/seg.nii.gz -t Task003 -p long", "give a folder: -o out/"),
    ("predict -i in/a.nii.gz -o seg.nii -t Task003 -p long", "label maps end in .nii.gz"),
    ("predict -i photos -o out -t Task003 -p long", "convert it without loss, to a.png"),
    ("pack -o model.zip", "TASK is missing"),
    ("train -f 0 1", "TASK is missing"),
    ("train -f 9 Task001 0", "choose 0 to 1, or all"),
    ("evaluate Task001 -f 0", "write autoseg_evaluate TASK"),
    ("evaluate Task001 --fold 0", "write autoseg_evaluate TASK"),
    ("pack -f 0 Task003 -o model.zip --plan lnog", "did you mean long?"),
    ("pack Task003 -o model.zip --plan lnog", "did you mean long?"),
    ("plan -d 1", "or -t TASK"),
]


@pytest.mark.parametrize(("words", "answer"), ANSWERS)
def test_a_wrong_command_is_answered_by_the_right_one(
    here: Path, words: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(here.glob("[pm]*/**/*.json"))  # plans and models
    assert main(words.split()) == 2
    assert answer in capsys.readouterr().err.splitlines()[-1]
    assert set(here.glob("[pm]*/**/*.json")) == before


def planned(root: Path, *words: str) -> Plan:
    """The plan `b`, which is removed again."""
    assert (
        main(
            [
                "plan",
                *words,
                *settings("training.epochs=2", "splits.folds=2"),
                "--no-reference",
                *ONE,
            ]
        )
        == 0
    )
    folder = root / "preprocessed" / TASK / "b"
    plan = load_plan(folder / "plan.json")
    shutil.rmtree(folder)
    return plan


def test_plan_takes_task_and_plan_as_options(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = planned(here, TASK, "--name", "b", "--planner", "nnUNetPlannerResEncM")
    assert "nnUNetPlannerResEncM is called resenc_m here" in capsys.readouterr().err
    assert planned(here, "-t", "1", "-p", "b", "--planner", "resenc_m") == first


@pytest.mark.parametrize(
    "words",
    [
        f"{TASK} fold 9",
        "Task001 9",
        "1 fold 9 --plan default",
        "Task001 -p default fold 9",
        "-t Task001 -f 9",
        "-t Task001 fold 9",
        "Task001 --fold 9 -p default",
        "--task 1 --folds 9 --plan default",
        "-f 9 Task001",
        "-p default --fold 9 Task001",
    ],
)
def test_train_takes_them_in_every_form(
    here: Path, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train([*words.split(), *ONE]) == 2
    assert "fold '9' does not exist" in capsys.readouterr().err


def test_every_command_on_a_model_has_the_same_options() -> None:
    for name in ("plan", "train", "predict", "export", "pack", "evaluate"):
        options = {
            option
            for names in common.declarations()[f"autoseg_{name}"]["options"]
            for option in names.split()
        }
        assert {"-t", "--task", "-p", "--plan"} <= options, name
        if name not in ("plan", "evaluate"):
            assert {"-f", "--fold", "--folds"} <= options, name


@pytest.mark.parametrize("words", [["-t", TASK, "-p", "none"], [TASK, "--plan", "none"]])
def test_evaluate_takes_the_plan_in_both_forms(
    here: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *words]) == 2
    assert "has no validated fold" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["seg.nii.gz", "seg.nrrd", "seg.mha"])
def test_one_scan_may_be_given_a_file(here: Path, tmp_path: Path, name: str) -> None:
    command = ["predict", "-i", "in/a.nii.gz", "-o", str(tmp_path / "out" / name)]
    assert main([*command, "-t", "3", "-p", "long", "--backend", "torch"]) == 0
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {name, "labels.json", "predictions.json"}
    assert read_image(tmp_path / "out" / name).geometry == read_image("in/a.nii.gz").geometry


def scored(tmp_path: Path, *words: str) -> Summary:
    out = str(tmp_path / "scores")
    assert main(["evaluate", *words, "-o", out, *ONE]) == 0
    return Summary.load(tmp_path / "scores" / "summary.json")


def test_two_files_and_named_labels(tmp_path: Path) -> None:
    label = np.zeros((6, 6, 6), np.uint8)
    label[1:3], label[3:5] = 1, 2
    for name, array in (("mine", label), ("theirs", np.where(label == 2, 1, label))):
        write_scan(tmp_path / name / f"{name}.nii.gz", array)
    pair = ["-g", str(tmp_path / "mine/mine.nii.gz"), "-p", str(tmp_path / "theirs/theirs.nii.gz")]
    assert scored(tmp_path, *pair).labels == ("1", "2")
    summary = scored(tmp_path, *pair, "--labels", "liver=1,all=1+2")
    assert summary.labels == ("liver", "all")
    assert summary.statistic("liver").mean == pytest.approx(2 * 72 / (72 + 144))
    assert summary.statistic("all").mean == 1
    for text in (
        '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}',
        '{"labels": {"background": [0], "liver": [1]}}',
    ):
        (tmp_path / "labels.json").write_text(text)
        assert scored(tmp_path, *pair, "--labels", str(tmp_path / "labels.json")).labels == (
            "liver",
        )


def run(*words: str, shell: str = "") -> subprocess.CompletedProcess[str]:
    command = [
        "bash",
        "-c",
        f'set -o pipefail; "$@" {shell}',
        "bash",
        sys.executable,
        "-m",
        "autoseg",
    ]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=False)


def test_the_doctor_says_what_each_task_lacks(here: Path) -> None:
    done = run("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    keys = {line.partition(":")[0] for line in lines}
    assert keys >= {"Python", "system", "cores", "free memory", "device"}
    assert (
        f"  plan default: no fold trained, missing: autoseg_train {TASK} fold 0 1 --plan default"
        in lines
    )
    assert "  no plan; run: autoseg_plan Task002_Heart" in lines
    (liver,) = [line for line in lines if line.startswith("  plan long: ")]
    assert "fold 0 trained" in liver
    assert "fold 0 not validated" in liver
    assert "no fingerprint.json" in liver
    assert "precision " in lines[-1]
    assert run("doctor", "--device", "cuda:99").returncode == 2


@pytest.mark.skipif(sys.platform == "win32", reason="uses a shell of Unix")
@pytest.mark.parametrize("words", [["--help"], ["plan", "--help"], ["doctor"]])
def test_a_broken_pipe_ends_quietly(here: Path, words: Sequence[str]) -> None:
    done = run(*words, shell="| head -1")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_options(shell: str) -> None:
    done = run("--print-completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    for name in COMMANDS:
        assert f"autoseg_{name}" in done.stdout
    assert "--time-budget" in done.stdout
    assert "-pl" not in done.stdout.split()  # nnU-Net's options are only answered
    assert run("--print-completion", "cmd").returncode == 2


@pytest.mark.skipif(sys.platform == "win32", reason="uses a shell of Unix")
def test_bash_completes(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(run("--print-completion", "bash").stdout)
    (tmp_path / "images.nii").touch()
    code = (
        "source ./script; "
        "show() { COMP_WORDS=($1); COMP_CWORD=$2; _shtab_$3; echo ${COMPREPLY[@]}; };"
        'show "autoseg tr" 1 autoseg; show "autoseg_predict --form" 1 autoseg_predict; '
        'show "autoseg_predict -i ima" 2 autoseg_predict'
    )
    done = subprocess.run(
        ["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["train", "--format", "images.nii"]
