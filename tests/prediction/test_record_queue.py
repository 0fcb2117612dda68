from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from autoseg.common.files import read_json
from autoseg.common.locks import locked
from autoseg.image.image import read_label
from autoseg.image.label_writer import write_label
from autoseg.prediction.record import (
    RECORD,
    CaseQueue,
    CaseRecord,
    PredictionRecord,
    file_facts,
)
from tests.dataset.making import write_scan
from tests.making import grid
from tests.prediction.scans import (
    files_in,
    inputs_of,
    predict,
    predictor_of,
    write_scans,
)

Capture = pytest.CaptureFixture[str]
NAMES = ("a", "b", "c")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return write_scans(tmp_path / "in", *NAMES)


@pytest.fixture
def out(scans: Path, tmp_path: Path) -> Path:
    """A folder in which all cases are predicted."""
    predict(scans, tmp_path / "out")
    return tmp_path / "out"


def queue_in(out: Path, scans: Path, overwrite: bool = False) -> CaseQueue:
    inputs = inputs_of(scans)
    outputs = {name: (f"{name}.nii.gz",) for name in inputs}
    return CaseQueue(inputs, outputs, PredictionRecord(out, predictor_of(), "nii.gz"), overwrite)


def test_predicted_cases_are_skipped_and_keep_their_record(scans: Path, out: Path) -> None:
    before = (out / "a.nii.gz").stat().st_mtime_ns, read_json(out / RECORD)
    assert predict(scans, out).skipped == NAMES
    assert read_json(out / RECORD) == before[1]
    write_scans(scans, *NAMES, "new")
    outcome = predict(scans, out)
    assert (sorted(outcome.predicted), outcome.skipped) == (["new"], NAMES)
    record = read_json(out / RECORD)
    assert list(record["cases"]) == [*NAMES, "new"]
    assert len(record["runs"]) == 2
    assert (out / "a.nii.gz").stat().st_mtime_ns == before[0]
    assert record["cases"]["a"] == before[1]["cases"]["a"]


def test_overwrite_predicts_again(scans: Path, out: Path) -> None:
    write_scan(scans / "a_0000.nii.gz", np.arange(27, dtype=np.float32).reshape(3, 3, 3) / 9)
    outcome = predict(scans, out, overwrite=True)
    assert sorted(outcome.predicted) == list(NAMES)
    label, _ = read_label(out / "a.nii.gz")
    assert label.shape == (3, 3, 3)
    assert label[0, 0, 0] == 0
    assert (label[2] == 3).all()


def damage_by_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_by_a_bit, "predicting b again: b.nii.gz is damaged"),
        (cut_off, "predicting b again: b.nii.gz is damaged"),
        (lambda path: path.write_bytes(b""), "predicting b again: b.nii.gz is damaged"),
        (Path.unlink, "predicting b again: b.nii.gz is missing"),
    ],
)
def test_incomplete_files_are_predicted_again(
    scans: Path, out: Path, damage: object, message: str, capsys: Capture
) -> None:
    assert callable(damage)
    original = file_facts(out / "b.nii.gz")
    damage(out / "b.nii.gz")
    capsys.readouterr()
    outcome = predict(scans, out)
    assert message in capsys.readouterr().err.splitlines()
    assert (list(outcome.predicted), outcome.skipped) == (["b"], ("a", "c"))
    assert file_facts(out / "b.nii.gz") == original


def test_another_scan_of_the_same_name_is_predicted(
    scans: Path, out: Path, capsys: Capture
) -> None:
    values = np.random.default_rng(9).normal(size=(9, 9, 9)).astype(np.float32)
    write_scan(scans / "b_0000.nii.gz", values)
    assert list(predict(scans, out).predicted) == ["b"]
    assert "predicting b again: its scan has changed" in capsys.readouterr().err


def test_a_manually_corrected_segmentation_is_kept(scans: Path, out: Path, capsys: Capture) -> None:
    path = out / "b.nii.gz"
    label, geometry = read_label(path)
    label[0, 0, 0] = 1 - label[0, 0, 0] // 3
    write_label(path, label, geometry)
    corrected = path.read_bytes()
    assert predict(scans, out).skipped == NAMES
    assert f"kept {path}: " in capsys.readouterr().err
    assert path.read_bytes() == corrected
    assert sorted(predict(scans, out, overwrite=True).predicted) == list(NAMES)
    assert path.read_bytes() != corrected


def test_a_foreign_label_map_is_kept(scans: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "b.nii.gz"
    write_label(path, np.ones((2, 2, 2), np.uint8), grid((2, 2, 2)))
    foreign = path.read_bytes()
    assert sorted(predict(scans, tmp_path / "out").predicted) == ["a", "c"]
    assert path.read_bytes() == foreign


def test_a_damaged_foreign_label_map_is_replaced(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.nii.gz").write_bytes(gzip.compress(b"half a label map"))
    assert sorted(predict(scans, tmp_path / "out").predicted) == list(NAMES)


def test_a_case_is_claimed_by_one_run_and_counted_by_the_other(scans: Path, out: Path) -> None:
    mine, other = (queue_in(out, scans, overwrite=True) for _ in range(2))
    (my_round, other_round) = (next(work.rounds()) for work in (mine, other))
    assert next(my_round) == "a"
    assert next(other_round) == "b"  # not `a`, which is in use
    facts = file_facts(out / "a.nii.gz")
    size = (scans / "a_0000.nii.gz").stat().st_size
    mine.record.add("a", {"files": {"a.nii.gz": facts}, "input_bytes": size})
    mine.release("a")
    assert list(my_round) == ["c"]
    other.close()  # it is stopped before it has predicted `b`
    mine.close()
    late = queue_in(out, scans)
    assert late.wanted == []


def test_the_second_run_waits_and_takes_over_failed_cases(
    scans: Path, out: Path, capsys: Capture
) -> None:
    first, second = (queue_in(out, scans, overwrite=True) for _ in range(2))
    names = next(first.rounds())
    assert [next(names), next(names), next(names)] == list(NAMES)
    rounds = second.rounds()
    assert list(next(rounds)) == []
    assert list(next(rounds)) == []
    assert capsys.readouterr().err.count("a, b, c") == 1
    record = {
        "files": {"a.nii.gz": file_facts(out / "a.nii.gz")},
        "input_bytes": (scans / "a_0000.nii.gz").stat().st_size,
    }
    first.record.add("a", record)
    first.close()  # `b` and `c` have failed there
    assert list(next(rounds)) == ["b", "c"]
    assert second.skipped == ["a"]
    second.close()
    assert list(rounds) == []
    assert [name for name in files_in(out) if name.startswith(".")] == []


def test_a_case_that_another_run_finishes_at_the_start_is_recognised(
    scans: Path, out: Path, capsys: Capture
) -> None:
    class Early(PredictionRecord):
        """Has read the record just before another run finished its first cases."""

        def begin(self, overwrite: bool) -> dict[str, CaseRecord]:
            super().begin(overwrite)
            return {}

    outputs = {name: (f"{name}.nii.gz",) for name in NAMES}
    record = Early(out, predictor_of(), "nii.gz")
    work = CaseQueue(inputs_of(scans), outputs, record, overwrite=False)
    assert work.wanted == []
    assert "kept" not in capsys.readouterr().err


def test_leftovers_of_a_killed_run_are_removed(scans: Path, out: Path) -> None:
    (out / ".tmp-99999-a.nii.gz").write_bytes(b"half")
    (out / ".tmp-99999-.tmp-99999-b.nii.gz").write_bytes(b"half")
    (out / ".tmp-99999-notes.txt").write_bytes(b"not ours")
    predict(scans, out)
    assert [name for name in files_in(out) if name.startswith(".")] == [".tmp-99999-notes.txt"]


def test_leftovers_of_a_living_run_are_kept(scans: Path, out: Path) -> None:
    half = out / ".tmp-99999-a.nii.gz"
    half.write_bytes(b"half")
    work = queue_in(out, scans)
    assert not half.exists()
    half.write_bytes(b"half")
    with work._claim("a"), locked(out / "other", "another lock"):
        queue_in(out, scans)
        assert half.exists()
