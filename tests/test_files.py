from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg import files
from autoseg.errors import AutosegError, InUse, RunError
from autoseg.files import (
    LOST_SECONDS,
    Holder,
    holder_of,
    locked,
    read_json,
    replacing,
    to_json,
    write_json,
    write_text,
)


def test_a_written_file_is_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "grüß\n")
    assert path.read_bytes() == "grüß\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        assert path.read_text(encoding="utf-8") == "old"
        raise KeyError
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_name_lies_beside_and_ends_alike(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.nii.gz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".nii.gz")
        temporary.touch()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AutosegError, match=r"cannot write .*a\.txt: .*; choose a folder"):
        write_text(tmp_path / "file" / "a.txt", "text")


def test_json_is_strict() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json({"a": float("nan")})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(json_values)
def test_json_keeps_its_value_and_its_bytes(value: object) -> None:
    text = to_json(value)
    assert json.loads(text) == value
    assert to_json(json.loads(text)) == text


def test_json_is_written_and_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None]})
    assert read_json(tmp_path / "a.json") == {"b": [1, None]}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a": 1,\n}', r"not valid JSON: .* in line [12], column"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "has the key 'c' twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "cannot read"),
    ],
)
def test_bad_json_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(AutosegError, match=told) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_a_missing_json_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"a\.json is missing"):
        read_json(tmp_path / "a.json")


def test_a_lock_keeps_others_out_and_says_who_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    taken = (
        "import sys; from pathlib import Path; from autoseg.files import locked\n"
        "with locked(Path(sys.argv[1]), 'the model'): pass"
    )
    with locked(lock, "the model"):
        other = subprocess.run(
            [sys.executable, "-c", taken, str(lock)],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[1],
        )
    assert f"the model is in use by process {os.getpid()}" in other.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "lock", "it"):
        raise KeyError
    with locked(tmp_path / "lock", "it"):
        pass


def test_a_lock_cannot_be_taken_twice(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", "it"),
        pytest.raises(RunError, match="wait for it, or stop it"),
        locked(tmp_path / "lock", "it"),
    ):
        pass


@pytest.mark.parametrize("holder", ["dead", "", "nonsense"])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, holder: str) -> None:
    if holder == "dead":
        finished = subprocess.Popen([sys.executable, "-c", ""])
        finished.wait()
        holder = str(finished.pid)
    (tmp_path / "lock").write_text(holder)
    with locked(tmp_path / "lock", "it"):
        assert (tmp_path / "lock").read_text(encoding="utf-8").split()[0] == str(os.getpid())


def test_a_waiting_process_gets_the_lock_when_it_is_free(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    lock.write_text(str(holder.pid))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(_take_and_release, lock)
        assert not waiting.done()
        holder.communicate(b"\n")
        assert waiting.result(timeout=60).split()[0] == str(os.getpid())


def _take_and_release(lock: Path) -> str:
    with locked(lock, "it", wait=True):
        return lock.read_text(encoding="utf-8")


def test_the_lock_of_another_machine_is_kept_while_it_is_touched(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("1 elsewhere")
    with pytest.raises(InUse, match="in use by process 1 on elsewhere"), locked(lock, "it"):
        pass
    assert holder_of(lock) == Holder(1, "elsewhere")
    past = lock.stat().st_mtime - LOST_SECONDS - 60
    os.utime(lock, (past, past))
    assert holder_of(lock) is None
    with locked(lock, "it"):
        assert holder_of(lock) == Holder(os.getpid(), platform.node())
    assert list(tmp_path.iterdir()) == []


def test_a_held_lock_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BEAT_SECONDS", 0.01)
    lock = tmp_path / "lock"
    with locked(lock, "it"):
        os.utime(lock, (0, 0))
        while lock.stat().st_mtime == 0:
            pass


def test_who_comes_second_does_not_remove_the_lock_of_who_came_first(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("1 elsewhere")  # taken over from the dead process 2 a moment ago
    files._remove_left(lock, Holder(2, platform.node()))
    assert lock.read_text(encoding="utf-8") == "1 elsewhere"
    assert list(tmp_path.iterdir()) == [lock]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_for_people_keeps_every_value(value: Any) -> None:
    assert json.loads(to_json(value)) == value


def test_plain_lists_stand_on_one_line() -> None:
    assert to_json({"size": [1, 2, 3]}) == '{\n  "size": [1, 2, 3]\n}\n'
