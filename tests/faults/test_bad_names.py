"""Entries of a folder that are no readable files: refused by name, while the others go on."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from autoseg.common.errors import DataError
from autoseg.common.files import is_there, obstacle, printable
from autoseg.dataset.problems import errors_by_case
from autoseg.dataset.task import find_task
from autoseg.evaluation.evaluate import evaluate_folders
from autoseg.fingerprint.fingerprint import survey
from autoseg.image.image import read_image
from autoseg.models.folder import FolderFiles
from autoseg.prediction.inputs import find_inputs
from tests.dataset.making import HIPPOCAMPUS, declare
from tests.faults.jobs import JOBS, Undisturbed
from tests.faults.killing import attempt

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="such names are Linux's alone")

SCAN, LABEL = (
    HIPPOCAMPUS / "imagesTr" / "hippocampus_003.nii.gz",
    HIPPOCAMPUS / "labelsTr" / "hippocampus_003.nii.gz",
)
BAD = {"dangling", "loop", "fifo", "socket", "device", "caf\\udce9", "new\\nline"}
GOOD = {"a", unicodedata.normalize("NFC", "Größe")}
NOBODY = 65534


def fill(folder: Path, source: Path, ending: str) -> None:
    """Every kind of entry."""
    folder.mkdir(parents=True)
    (folder / f"dangling{ending}").symlink_to("nowhere")
    (folder / f"loop{ending}").symlink_to(f"loop{ending}")
    os.mkfifo(folder / f"fifo{ending}")
    (folder / f"device{ending}").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(folder / f"socket{ending}"))
    for name in (b"caf\xe9", b"new\nline", b"a", unicodedata.normalize("NFD", "Größe").encode()):
        shutil.copy(source, folder / os.fsdecode(name + ending.encode()))


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # the path of a socket is limited to 107 bytes
    return tmp_path


def test_predict_refuses_by_name(short: Path) -> None:
    fill(short / "in", SCAN, "_0000.nii.gz")
    (short / "in" / "P3").symlink_to("/mnt/none/P3")  # a folder of scans that is not mounted
    (short / "in" / "notes.txt").symlink_to("nowhere")
    found = find_inputs(short / "in", ("MRI",))
    assert set(found.cases) == GOOD
    assert set(found.refused) == BAD | {"P3"}
    assert "nowhere" in found.refused["dangling"]
    for name in ("fifo", "socket", "device", "loop"):
        path = short / "in" / f"{name}_0000.nii.gz"
        with pytest.raises(DataError, match=name):
            find_inputs(path, ("MRI",))
        with pytest.raises(DataError, match=name):
            read_image(path)


def test_plan_refuses_by_name(short: Path) -> None:
    names = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "A": 1, "P": 2}}
    task = declare(short / "Task001", names | {"file_ending": ".nii.gz"})
    fill(task / "imagesTr", SCAN, "_0000.nii.gz")
    fill(task / "labelsTr", LABEL, ".nii.gz")
    named = task / "labelsTr" / (unicodedata.normalize("NFD", "Größe") + ".nii.gz")
    named.rename(named.with_name("Größe.nii.gz"))  # NFC, unlike the scan
    found, problems = find_task(task)
    fingerprint, more = survey(found, processes=1, cache=short / "cache")
    assert set(errors_by_case([*problems, *more])) == BAD
    assert set(fingerprint.cases) == GOOD


def test_evaluate_refuses_by_name(short: Path) -> None:
    fill(short / "truth", LABEL, ".nii.gz")
    (short / "out").mkdir()
    for name in ("a", "Größe", "fifo"):
        shutil.copy(LABEL, short / "out" / f"{name}.nii.gz")
    (short / "out" / "lost.nii.gz").symlink_to("nowhere")
    summary = evaluate_folders(short / "truth", short / "out")
    assert {case.case for case in summary.cases} == GOOD
    assert set(summary.refused) == BAD | {"lost"}


def test_a_model_whose_files_were_not_fetched(tmp_path: Path) -> None:
    for fold in ("fold_0", "fold_1"):
        (tmp_path / fold).mkdir()
        (tmp_path / fold / "final.safetensors").touch()
    assert FolderFiles(tmp_path).folds() == ["0", "1"]
    (tmp_path / "fold_1" / "final.safetensors").unlink()
    assert FolderFiles(tmp_path).folds() == ["0"]
    (tmp_path / "fold_1" / "final.safetensors").symlink_to("annex")
    with pytest.raises(DataError, match="annex"):
        FolderFiles(tmp_path).folds()


def test_names_that_differ_only_in_case_are_told(short: Path) -> None:
    names = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "A": 1, "P": 2}}
    task = declare(short / "Task001", names | {"file_ending": ".nii.gz"})
    for folder, source, ending in (("imagesTr", SCAN, "_0000"), ("labelsTr", LABEL, "")):
        (task / folder).mkdir()
        for name in ("Case1", "case1"):
            shutil.copy(source, task / folder / f"{name}{ending}.nii.gz")
    _, problems = find_task(task)
    assert [(p.kind, p.severity) for p in problems] == [("names", "warning")]
    assert "Case1 and case1" in problems[0].message


def test_the_commands_go_on(undisturbed: Undisturbed, short: Path) -> None:
    root = undisturbed.prepare("predict", short / "work")
    os.mkfifo(root / "in" / "fifo.nii.gz")
    shutil.copy(SCAN, root / "in" / os.fsdecode(b"caf\xe9.nii.gz"))  # ITK would abort
    good = len(list((undisturbed.root / "out").glob("*.nii.gz")))
    ended = attempt("predict", JOBS["predict"].words(root))
    assert ended.status == 2
    assert "refused fifo" in ended.said
    assert "refused caf" in ended.said
    assert len(list((root / "out").glob("*.nii.gz"))) == good


def test_printable() -> None:
    assert printable("Größe 語 a\u3000b") == "Größe 語 a\u3000b"
    assert printable("a\nb\x1b\u2028") == r"a\nb\x1b\u2028"
    assert printable(os.fsdecode(b"caf\xe9")) == r"caf\udce9"


CHECK = """
import sys
from pathlib import Path
from autoseg.common.files import obstacle
for path in sys.argv[1:]:
    print(obstacle(Path(path)))
"""


@pytest.mark.skipif(os.name == "nt" or not shutil.which("setpriv"), reason="needs setpriv")
@pytest.mark.skipif(os.name != "nt" and os.geteuid() != 0, reason="root becomes another user")
def test_permission_denied_is_said_as_that(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir()
    for name in ("file", "shut/file"):
        (tmp_path / name).touch()
    (tmp_path / "file").chmod(0)
    (tmp_path / "shut").chmod(0o600)
    paths = [tmp_path / "file", tmp_path / "shut", tmp_path / "shut" / "file"]
    for folder in (tmp_path, *tmp_path.parents):  # pytest makes private folders
        if folder.stat().st_mode & stat.S_IXOTH == 0:
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    done = subprocess.run(
        [*user, sys.executable, "-c", CHECK, *paths], capture_output=True, text=True, check=False
    )
    if "Permission denied" in done.stderr:
        pytest.skip(f"another user cannot run Python here: {done.stderr[-200:]}")
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for path, line in zip(paths, lines, strict=True):
        assert line.startswith(f"{path}: permission denied")


def test_whether_a_file_is_there(tmp_path: Path) -> None:
    assert is_there(tmp_path)
    assert not is_there(tmp_path / "missing")
    assert not is_there(tmp_path / "missing" / "below")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(DataError, match="nowhere"):
        is_there(tmp_path / "link")
    assert obstacle(Path("a\0b"))
