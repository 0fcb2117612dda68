from __future__ import annotations

from typing import Any

import pytest

from autoseg.plan.plan import Plan
from autoseg.planner.compose import Wishes, compose
from autoseg.planner.explain import GROUPS, explain, rows
from tests.making import tiny_plan
from tests.planner.making import fingerprint
from tests.planner.test_compose import never

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
    assert [row.key for row in rows(plan)] == expected
    assert len(expected) > 50


def test_a_row_tells_value_reason_and_what_was_replaced(plan: Plan) -> None:
    found = {row.key: row for row in rows(plan)}
    patch = found["sampling.patch_size"]
    assert (patch.value, patch.source) == ("32 x 32 x 32 voxels", "--set")
    assert patch.why == "the rules alone: 40 x 56 x 48 voxels"
    optimizer = found["training.optimizer.optimizer"]
    assert (optimizer.value, optimizer.why) == ("adam", "the rules alone: sgd")
    epochs = found["training.epochs"]
    assert (epochs.value, epochs.source, epochs.why) == ("1000", "default", "")
    spacing = found["target_spacing_mm"]
    assert (spacing.value, spacing.source) == ("1 x 1 x 1.5 mm", "nnU-Net's rules")
    assert spacing.why.startswith("median voxel size: median spacing 1 x 1 x 1.5 mm of 6 cases")
    assert found["preprocessing.1"].value == "limit intensities to -958.5 to 271 HU"
    assert found["channels"].source == "dataset.json"


def test_a_value_that_a_layer_confirms() -> None:
    plan = compose(fingerprint(), Wishes(settings=("splits.folds=5",)), never, never)
    (row,) = [row for row in rows(plan) if row.key == "splits.folds"]
    assert row.why == "the rules alone: the same"


def test_a_replaced_list_is_told_once() -> None:
    wishes = Wishes(settings=("preprocessing=[{step: 'resample'}, {step: 'z_score'}]",))
    plan = compose(fingerprint(), wishes, never, never)
    ruled = {row.key: row.replaced for row in rows(plan) if row.key.startswith("preprocessing.")}
    assert ruled == {
        "preprocessing.0": "crop to nonzero, clip, z score, resample",
        "preprocessing.1": "",
    }


def test_a_citation_stands_once_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"background": (0,), "left": (1,), "right": (2,), "infection": (3,)}
    plan = compose(fingerprint(labels=labels, task="Task001_COVID"), Wishes(), never, never)
    assert all(row.evidence == "" for row in rows(plan) if row.source == "Task001_COVID.json5")
    explain(plan)
    printed = capsys.readouterr().out
    assert printed.count("Müller") == 1
    assert "reference plan Task001_COVID.json5: Müller et al. 2021" in printed.splitlines()[-1]


def test_the_table_is_whole_and_narrow_without_a_terminal(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    explain(plan)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    lines = [line.strip() for line in printed.splitlines()]
    for heading in GROUPS:
        assert heading.upper() in lines
    assert plan.id in printed
    for row in rows(plan):
        assert any(line.split(maxsplit=1)[:1] == [row.key] for line in lines), row.key
    assert "…" not in printed
    for why in plan.provenance.values():
        assert why.source.startswith("rule: ") or why.source in printed


def test_brackets_and_colons_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    why = {"training.epochs": {"source": "overrides [bold]a[/b].json5", "evidence": ":smile: [/]"}}
    labels = {"background": [0], "[red]tumour[/x]": [1]}
    explain(tiny_plan(task="Task[/]", labels=labels, provenance=why))
    printed = capsys.readouterr().out
    for text in ("[bold]a[/b].json5", ":smile: [/]", "[red]tumour[/x]", "Task[/]"):
        assert text in printed


def test_a_spacing_that_no_step_uses_is_told_as_such() -> None:
    plan = compose(fingerprint(), Wishes(settings=("preprocessing=[]",)), never, never)
    (row,) = [row for row in rows(plan) if row.key == "target_spacing_mm"]
    assert row.value == "1 x 1 x 1.5 mm (not used: no step resamples)"
