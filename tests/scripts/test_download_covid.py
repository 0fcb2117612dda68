from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import covid_set
import download_covid
import pytest
from covid_set import ARCHIVES, CASES, LABELS, OTHER_MASKS, Archive
from download_covid import RECORD, download, main, make_parser, remotes_of
from fetching import TRIES

from autoseg.cli import plan
from autoseg.common.errors import DataError, RunError
from tests.scripts.serving import Answer, Web
from tests.scripts.test_covid_set import EXPECTED, files_below
from tests.scripts.test_covid_test_set import make_case

IMAGES, MASKS = "/COVID-19-CT-Seg_20cases.zip", "/Lung_and_Infection_Mask.zip"
RECORD_PATH = "/record"
Archives = tuple[Archive, ...]


def no_wait(seconds: float) -> None:
    pass


def run(
    workspace: Path,
    *words: str,
    archives: Archives = ARCHIVES,
    others: Archives = OTHER_MASKS,
    record: str = RECORD,
) -> int:
    arguments = make_parser().parse_args(["--workspace", str(workspace), *words])
    return download(arguments, archives, others, record, no_wait)


def task_files(workspace: Path) -> set[str]:
    return files_below(workspace / "raw" / "Task001_COVID")


def test_downloaded_laid_out_and_planned(
    web: Web, zips: Path, archives: Archives, tmp_path: Path
) -> None:
    record = web.publish(zips)
    half = len(web.files[IMAGES]) // 2
    web.next_answers[RECORD_PATH] = [Answer(status=503)]
    web.next_answers[IMAGES] = [Answer(break_after=half)]
    assert run(tmp_path, archives=archives, record=record) == 0
    assert task_files(tmp_path) == EXPECTED
    assert files_below(tmp_path) == {f"raw/Task001_COVID/{name}" for name in EXPECTED}
    assert web.ranges(IMAGES) == [None, f"bytes={half}-"]
    assert web.ranges(MASKS) == [None]

    where = ["--workspace", str(tmp_path), "--device", "cpu", "--processes", "1"]
    assert plan.main(["Task001_COVID", *where]) == 0
    planned = tmp_path / "preprocessed" / "Task001_COVID" / "default"
    values = json.loads((planned / "plan.json").read_text(encoding="utf-8"))
    assert values["sampling"]["patch_size"] == [160, 160, 80]
    assert values["labels"] == {name: [value] for name, value in LABELS.items()}
    assert values["channels"] == ["CT"]
    assert "reference plan Task001_COVID.json5" in json.dumps(values["provenance"])


def test_a_second_run_asks_nobody_and_changes_nothing(
    web: Web, zips: Path, archives: Archives, tmp_path: Path
) -> None:
    record = web.publish(zips)
    run(tmp_path, archives=archives, record=record)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    web.requests.clear()
    assert run(tmp_path, archives=archives, record=record) == 0
    assert web.requests == []
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_a_run_that_ended_amid_the_second_file_goes_on(
    web: Web, zips: Path, archives: Archives, tmp_path: Path
) -> None:
    record = web.publish(zips)
    web.next_answers[MASKS] = [Answer(break_after=5000), *[Answer(status=500)] * (TRIES - 1)]
    with pytest.raises(RunError, match="5,000 bytes are kept"):
        run(tmp_path, archives=archives, record=record)
    assert not (tmp_path / "raw" / "Task001_COVID").exists()
    web.requests.clear()
    assert run(tmp_path, archives=archives, record=record) == 0
    assert web.requests == [(RECORD_PATH, None), (MASKS, "bytes=5000-")]
    assert task_files(tmp_path) == EXPECTED
    assert not (tmp_path / "downloads").exists()


def test_a_run_killed_while_unpacking_goes_on(
    web: Web, zips: Path, archives: Archives, tmp_path: Path
) -> None:
    record = web.publish(zips)
    shutil.copytree(zips, tmp_path / "downloads")
    whole = tmp_path / "elsewhere"
    covid_set.lay_out({archive: zips / archive.name for archive in archives}, whole)
    task = tmp_path / "raw" / "Task001_COVID"
    (task / "imagesTr").mkdir(parents=True)
    shutil.copy(whole / "imagesTr/coronacases_001_0000.nii.gz", task / "imagesTr")
    (task / "imagesTr/.tmp-1-coronacases_002_0000.nii.gz").write_bytes(b"half")
    assert run(tmp_path, archives=archives, record=record) == 0
    assert web.requests == [(RECORD_PATH, None)]
    assert task_files(tmp_path) == EXPECTED


def test_a_wrong_checksum(web: Web, zips: Path, archives: Archives, tmp_path: Path) -> None:
    record = web.publish(zips)
    wrong = bytes(len(web.files[MASKS]))
    web.next_answers[MASKS] = [Answer(body=wrong), Answer(body=wrong)]
    with pytest.raises(RunError, match=r"Lung_and_Infection_Mask\.zip: the checksum is md5:"):
        run(tmp_path, archives=archives, record=record)
    assert not (tmp_path / "raw" / "Task001_COVID").exists()


def test_a_record_without_the_file(web: Web, zips: Path, archives: Archives) -> None:
    record = web.publish(zips)
    listed = json.loads(web.files[RECORD_PATH])
    listed["files"] = [file for file in listed["files"] if file["key"] != MASKS[1:]]
    web.files[RECORD_PATH] = json.dumps(listed).encode()
    with pytest.raises(RunError, match=r"has no file Lung_and_Infection_Mask\.zip; there: COVID"):
        download_covid.downloaded(archives, zips, record, no_wait)


@pytest.mark.parametrize("answer", [[], {}, {"files": [{"key": "a"}]}, {"files": 3}, None])
def test_a_record_of_another_shape(answer: object) -> None:
    with pytest.raises(RunError, match=r"example\.org .*--from"):
        remotes_of(answer, "https://example.org")


def test_checksums_of_another_kind() -> None:
    file = {"key": "a", "size": 1, "checksum": "crc:1", "links": {"self": "https://example.org"}}
    with pytest.raises(RunError, match="checksums other than md5"):
        remotes_of({"files": [file]}, "https://example.org")


def test_from_a_folder_with_all_masks(
    zips: Path, archives: Archives, other_masks: Archives, tmp_path: Path
) -> None:
    where = ["--from", str(zips)]
    assert run(tmp_path, *where, archives=archives) == 0
    assert task_files(tmp_path) == EXPECTED
    assert run(tmp_path, *where, "--all-masks", archives=archives, others=other_masks) == 0
    others = {
        f"{folder}/{case}.nii.gz"
        for folder in ("lung_masksTr", "infection_masksTr")
        for case in CASES
    }
    assert task_files(tmp_path) == EXPECTED | others
    assert len(list(zips.glob("*.zip"))) == 4  # a user's files are left alone


def test_from_a_folder_with_other_files(zips: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cases\.zip has the SHA-256 [0-9a-f]{64}, not a5060480"):
        run(tmp_path, "--from", str(zips))
    with pytest.raises(DataError, match=r"COVID-19-CT-Seg_20cases\.zip is missing.*zenodo"):
        run(tmp_path, "--from", str(tmp_path))
    assert not (tmp_path / "raw" / "Task001_COVID").exists()


def test_a_phantom_in_the_place_is_not_taken_for_the_set(
    zips: Path, archives: Archives, tmp_path: Path
) -> None:
    run(tmp_path, "--from", str(zips), archives=archives)
    path = tmp_path / "raw" / "Task001_COVID" / "dataset.json"
    declared = json.loads(path.read_text(encoding="utf-8")) | {"name": "COVID-19 CT phantom"}
    path.write_text(json.dumps(declared), encoding="utf-8")
    with pytest.raises(DataError, match=r"dataset\.json .*'COVID-19 CT Lung"):
        run(tmp_path, "--from", str(zips), archives=archives)


def test_the_test_set_beside_it(zips: Path, archives: Archives, tmp_path: Path) -> None:
    make_case(tmp_path / "mine", "volume-covid19-A-0003")
    where = ["--from", str(zips), "--test-set", str(tmp_path / "mine")]
    assert run(tmp_path, *where, archives=archives) == 0
    assert files_below(tmp_path / "test_sets" / "COVID-19-20") == {
        "dataset.json",
        "imagesTs/volume-covid19-A-0003_0000.nii.gz",
        "labelsTs/volume-covid19-A-0003.nii.gz",
    }


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--workspace", str(tmp_path), "--from", str(tmp_path / "nowhere")]) == 2
    assert main(["--workspace", str(tmp_path), "--test-set", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["error:", "error:"]


def test_the_script_starts_by_itself() -> None:
    script = Path(__file__).parents[2] / "scripts" / "download_covid.py"
    told = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert told.returncode == 0
    assert "--test-set FOLDER" in told.stdout
