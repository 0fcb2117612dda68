"""Plan files with every key changed: a plan, or one line that names the file; never a traceback."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from autoseg.common.errors import AutosegError
from autoseg.plan.plan import Plan, load_plan
from autoseg.planner.overrides import read_reference
from tests.faults.bad_json import changed, places
from tests.making import tiny_plan

INSTEAD: tuple[Any, ...] = (None, True, "x", -1, 0, 1e300, math.nan, 1 << 70, [], {"x": 1})
FEWEST = 1000
RECIPE = ("preprocessing", "sampling", "augmentation", "network", "training", "inference")


def outcome(path: Path, text: str) -> str:
    """What comes of a plan file: its id, or the message."""
    path.write_text(text)
    try:
        return load_plan(path).id
    except AutosegError as error:
        message = str(error)
        assert path.name in message, text[:300]
        assert len(message.splitlines()) == 1, message
        return message


@pytest.mark.parametrize("name", ["tiny", "paper"])
def test_plans_with_one_value_changed(tmp_path: Path, name: str) -> None:
    plan = paper() if name == "paper" else tiny_plan().to_json()
    count = 0
    for keys in places(plan):
        for value in INSTEAD:
            outcome(tmp_path / "plan.json", json.dumps(changed(plan, keys, value)))
            count += 1
    assert count >= FEWEST


def paper() -> dict[str, Any]:
    """The values of the paper's plan, on labels and channels of the tiny one."""
    (layer,) = read_reference("Task001_COVID").layers
    return tiny_plan(**{key: layer.values[key] for key in RECIPE}).to_json()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "plan"),
        ("null", "plan"),
        ('{"task": "a", "task": "b"}', "the key 'task' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"task": "\\ud800"}', "plan"),
        ('{"task": NaN}', "the number NaN, which is not finite"),
        ('{"task": 1e999}', "the number 1e999, which is not finite"),
        ('{"task": ' + "9" * 5000 + "}", "plan.json"),
    ],
)
def test_files_that_are_no_plan(tmp_path: Path, text: str, told: str) -> None:
    assert told in outcome(tmp_path / "plan.json", text)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x80\x04\x95.", bytes(1000)])
def test_bytes_that_are_no_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(AutosegError, match=r"plan\.json"):
        load_plan(tmp_path / "plan.json")


def test_numbers_that_are_none_are_in_no_plan(tmp_path: Path) -> None:
    """A plan that was read can be written again as strict JSON."""
    plan = tiny_plan().to_json()
    for keys in places(plan):
        for value in (math.nan, math.inf):
            (tmp_path / "plan.json").write_text(json.dumps(changed(plan, keys, value)))
            with pytest.raises(AutosegError, match=r"plan\.json"):
                load_plan(tmp_path / "plan.json")
    assert isinstance(tiny_plan(), Plan)
