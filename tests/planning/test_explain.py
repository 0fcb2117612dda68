from __future__ import annotations

from typing import Any

import pytest

from autoseg.planning.compose import Wishes, compose
from autoseg.planning.explain import explain, rows
from autoseg.planning.plan import Plan
from tests.making import tiny_plan
from tests.planning.making import fingerprint
from tests.planning.test_compose import never

PATCH = "sampling.patch_size=[32,32,32]"


@pytest.fixture
def plan() -> Plan:
    settings = (PATCH, "inference.overlap=[16,16,16]", "training.optimizer={optimizer: 'adam'}")
    return compose(fingerprint(), Wishes(settings=settings), never, never)


def leaves(value: Any, key: str) -> list[str]:
    """Objects fall into their keys, lists of objects into their entries."""
    if isinstance(value, dict) and value and key != "labels":
        return [leaf for name, inner in value.items() for leaf in leaves(inner, f"{key}.{name}")]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [f"{key}.{index}" for index in range(len(value))]
    return [key]


def test_every_value_has_a_row(plan: Plan) -> None:
    values = plan.model_dump(mode="json")
    for hidden in ("format_version", "provenance", "measured", "task", "name"):
        del values[hidden]
    expected = [leaf for key, value in values.items() for leaf in leaves(value, key)]
    assert [row[0] for row in rows(plan)] == expected
    assert len(expected) > 50


def test_a_row_tells_value_reason_and_what_was_replaced(plan: Plan) -> None:
    found = {key: rest for key, *rest in rows(plan)}
    assert found["sampling.patch_size"] == ["32 x 32 x 32", "--set", "40 x 56 x 48"]
    assert found["training.optimizer.optimizer"] == ["adam", "--set", "sgd"]
    assert found["training.epochs"] == ["1000", "default", ""]
    value, why, ruled = found["target_spacing_mm"]
    assert (value, ruled) == ("1 x 1 x 1.5", "")
    assert why.startswith("rule: spacing mm of the data: median spacing 1 x 1 x 1.5 mm of 6 cases")
    assert found["preprocessing.0"][0] == "step crop_to_nonzero"


def test_a_replaced_list_is_told_once() -> None:
    wishes = Wishes(settings=("preprocessing=[{step: 'resample'}, {step: 'z_score'}]",))
    plan = compose(fingerprint(), wishes, never, never)
    ruled = {key: row[2] for key, *row in rows(plan) if key.startswith("preprocessing.")}
    assert ruled == {
        "preprocessing.0": "crop_to_nonzero, clip, z_score, resample",
        "preprocessing.1": "",
    }


def test_the_table_is_whole_without_a_terminal(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    explain(plan)
    printed = capsys.readouterr().out
    squeezed = "".join(printed.split())
    assert plan.id in printed
    for key, value, _, _ in rows(plan):
        assert key in printed
        if len(value) < 40:
            assert "".join(value.split()) in squeezed, key
    assert "…" not in printed
    for why in plan.provenance.values():
        assert why.source.split()[0] in printed


def test_brackets_and_colons_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    why = {"training.epochs": {"source": "overrides [bold]a[/b].json5", "evidence": ":smile: [/]"}}
    labels = {"background": [0], "[red]tumour[/x]": [1]}
    explain(tiny_plan(task="Task[/]", labels=labels, provenance=why))
    printed = capsys.readouterr().out
    for text in ("[bold]a[/b].json5", ":smile: [/]", "[red]tumour[/x]", "Task[/]"):
        assert text in printed
