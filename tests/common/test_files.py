from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import (
    dataclass_from_json,
    is_temporary,
    read_json,
    remove_leftovers,
    replacing,
    temporary_for,
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
        (b"\xff\xfe{", "cannot read"),
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


@dataclass(frozen=True)
class Inner:
    number: float
    shape: tuple[int, int]
    counts: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Outer:
    name: str
    inner: tuple[Inner | None, ...]


def test_dataclasses_survive_json() -> None:
    made = Outer("a", (None, Inner(1.0, (2, 3), {4: 5}), Inner(0.1, (6, 7))))
    values = json.loads(to_json(asdict(made)))
    assert dataclass_from_json(Outer, values, "a.json") == made


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"name": "a"}, "inner"),
        ({"name": 1, "inner": []}, "name"),
        ({"name": "a", "inner": [{"number": "1", "shape": [1, 2]}]}, "inner.0.number"),
        ({"name": "a", "inner": [{"number": True, "shape": [1, 2]}]}, "inner.0.number"),
        ({"name": "a", "inner": [{"number": 1, "shape": [1, 2, 3]}]}, "inner.0.shape"),
        ({"name": "a", "inner": [], "more": 1}, "more"),
        ({"name": "a", "inner": [{"number": 1, "shape": [1, 2], "more": 1}]}, "inner.0.more"),
        ({"name": "a", "inner": [{"number": float("nan"), "shape": [1, 2]}]}, ""),
        ([1], ""),
    ],
)
def test_a_value_that_the_dataclass_cannot_have_is_named(values: Any, key: str) -> None:
    with pytest.raises(DataError, match=r"^a\.json: .*; write it again$") as caught:
        dataclass_from_json(Outer, values, "a.json", "write it again")
    assert f"{key}: " in str(caught.value)
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("letter", ["a", "ü", "語"])
def test_a_file_of_the_longest_name_can_be_written(tmp_path: Path, letter: str) -> None:
    name = letter * ((255 - 7) // len(letter.encode())) + ".nii.gz"
    with replacing(tmp_path / name) as temporary:
        assert temporary.name.endswith(f"{letter}.nii.gz")
        assert is_temporary(temporary.name, name)
        assert not is_temporary(temporary.name, name.replace(letter, "b", 1))
        with replacing(temporary) as inner:
            inner.touch()
            assert inner != temporary
            assert is_temporary(inner.name, name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"a\.txt: File name too long; use a shorter name"):
        write_text(tmp_path / f"{'a' * 252}.txt", "text")


def test_what_killed_processes_have_left_of_a_file_is_removed(tmp_path: Path) -> None:
    names = ["a.bin", ".tmp-12-a.bin", ".tmp-345-a.bin", ".tmp-12-b.bin", ".tmp-x-a.bin"]
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, ["a.bin"])
    assert {path.name for path in tmp_path.iterdir()} == {names[0], *names[3:]}


def test_what_killed_processes_have_left_of_a_folder_is_removed(tmp_path: Path) -> None:
    write_text(tmp_path / ".tmp-12-.tmp-12-out" / "in it.txt", "half")
    write_text(tmp_path / ".tmp-12-other" / "in it.txt", "half")
    remove_leftovers(tmp_path, ["out"])
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-12-other"]
    remove_leftovers(tmp_path / "no such folder", ["out"])


def test_processes_with_one_pid_write_under_different_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In containers, many processes have the PID 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    script = (
        "import os; from pathlib import Path; from autoseg.common.files import temporary_for\n"
        "os.getpid = lambda: 1; print(temporary_for(Path('a.bin')))"
    )
    other = subprocess.check_output([sys.executable, "-c", script], text=True).strip()
    assert is_temporary(other, "a.bin")
    assert temporary_for(Path("a.bin")).name != other
