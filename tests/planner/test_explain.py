from __future__ import annotations

from typing import Any

import pytest

from autoseg.plan.plan import Plan
from autoseg.planner.compose import PlanOptions, compose
from autoseg.planner.explain import GROUPS, HIDDEN, Explained, explain, group_of, rows
from tests.making import tiny_plan
from tests.plan.test_plan import full_plan
from tests.planner.making import fingerprint

OPTIMIZERS = ({"optimizer": "sgd"}, {"optimizer": "adam"})
SCHEDULES = ({"schedule": "polynomial"}, {"schedule": "cosine"}, {"schedule": "plateau"})
LOSSES = ({"loss": "dice_cross_entropy"}, {"loss": "tversky_cross_entropy"})


def composed(*settings: str, **data: Any) -> Plan:
    return compose(fingerprint(**data), PlanOptions(settings=settings))


@pytest.fixture
def plan() -> Plan:
    patch = ("sampling.patch_size=[32,32,32]", "inference.overlap=[16,16,16]")
    return composed(*patch, "training.optimizer={optimizer: 'adam'}")


def by_key(plan: Plan) -> dict[str, Explained]:
    return {row.key: row for row in rows(plan)}


def value(key: str, **changes: Any) -> str:
    """The text of one value of a plan with these changes."""
    return by_key(full_plan(**changes))[key].value


def leaves(value: Any, key: str) -> list[str]:
    """Keys of values: objects fall into their keys, lists of objects into their entries."""
    if isinstance(value, dict) and value and key != "labels":
        return [leaf for name, inner in value.items() for leaf in leaves(inner, f"{key}.{name}")]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [f"{key}.{index}" for index in range(len(value))]
    return [key]


# --- rows ---


def test_every_value_has_a_row(plan: Plan) -> None:
    values = plan.model_dump(mode="json", exclude=set(HIDDEN))
    expected = [leaf for key, value in values.items() for leaf in leaves(value, key)]
    assert [row.key for row in rows(plan)] == expected
    assert len(expected) > 50


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_key_has_a_title_of_its_own_and_a_heading(
    loss: dict[str, Any], schedule: dict[str, Any], optimizer: dict[str, Any]
) -> None:
    training = {"loss": loss, "schedule": schedule, "optimizer": optimizer}
    found = rows(tiny_plan(training=training))
    assert all(row.name and row.name != "None" for row in found)
    assert len({row.name for row in found}) == len(found)
    assert {group_of(row.key) for row in found} == set(GROUPS)
    assert group_of("inference.overlap") == "prediction"
    assert group_of("labels") == "data"


def test_entries_of_a_list_are_numbered_from_1() -> None:
    found = by_key(full_plan())
    assert found["preprocessing.1"].name == "preprocessing step 2"
    assert found["augmentation.0"].name == "augmentation 1"


def test_a_row_has_value_reason_and_what_was_replaced(plan: Plan) -> None:
    found = by_key(plan)
    patch = found["sampling.patch_size"]
    assert (patch.value, patch.source) == ("32 x 32 x 32 voxels", "--set")
    assert (patch.replaced, patch.why) == ("40 x 56 x 48 voxels", f"rules alone: {patch.replaced}")
    optimizer = found["training.optimizer.optimizer"]
    assert (optimizer.value, optimizer.replaced) == ("adam", "sgd")
    epochs = found["training.epochs"]
    assert (epochs.value, epochs.source, epochs.why) == ("1000", "default", "")
    spacing = found["target_spacing_mm"]
    assert (spacing.value, spacing.source) == ("1 x 1 x 1.5 mm", "nnU-Net's rules")
    assert spacing.why.startswith("median voxel size: median spacing 1 x 1 x 1.5 mm of 6 cases")
    assert "-958.5 to 271 HU" in found["preprocessing.1"].value
    assert found["channels"].source == "dataset.json"


def test_the_evidence_of_a_list_is_shown_once(plan: Plan) -> None:
    steps = [row for row in rows(plan) if row.key.startswith("preprocessing.")]
    assert [bool(row.why) for row in steps] == [True] + [False] * (len(steps) - 1)


def test_a_value_that_a_layer_confirms() -> None:
    assert by_key(composed("splits.folds=5"))["splits.folds"].replaced == "the same"


def test_a_replaced_list_is_shown_once() -> None:
    plan = composed("preprocessing=[{step: 'resample'}, {step: 'z_score'}]")
    ruled = {row.key: row.replaced for row in rows(plan) if row.key.startswith("preprocessing.")}
    assert ruled == {
        "preprocessing.0": "crop_to_nonzero, clip, z_score, resample",
        "preprocessing.1": "",
    }


def test_an_unused_spacing_is_marked() -> None:
    (row,) = [row for row in rows(composed("preprocessing=[]")) if row.key == "target_spacing_mm"]
    assert row.value.startswith("1 x 1 x 1.5 mm (not used")


# --- values ---


@pytest.mark.parametrize(
    ("step", "parts"),
    [
        ({"step": "crop_to_nonzero"}, ["crop"]),
        ({"step": "clip", "window": [-1250, 250]}, ["clip", "-1250 to 250 HU"]),
        (
            {"step": "rescale", "range": [0, 255], "whole_numbers": True},
            ["each case", "0 to 255, rounded"],
        ),
        ({"step": "rescale"}, ["each case", "0 to 1"]),
        (
            {"step": "resample", "rounding": "down", "anisotropy": None},
            ["image cubic", "labels linear", "down"],
        ),
        ({"step": "resample"}, ["nearest along an axis more than 3 x"]),
        ({"step": "z_score"}, ["the case's mean", "the case's standard deviation"]),
        ({"step": "z_score", "nonzero": True}, ["the case's mean", "non-zero"]),
        ({"step": "z_score", "mean": -81.5, "std": 140.25}, ["-81.5 HU", "140.25 HU"]),
    ],
)
def test_steps(step: dict[str, Any], parts: list[str]) -> None:
    text = value("preprocessing.0", preprocessing=[step])
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("channels", "channel", "end"),
    [
        (["MR"], None, "0 to 9"),
        (["CT", "PET"], None, "0 to 9"),
        (["CT", "PET"], 0, "0 to 9 HU (CT)"),
        (["CT", "PET"], 1, "0 to 9 (PET)"),
    ],
)
def test_only_ct_is_in_hounsfield_units(channels: list[str], channel: int | None, end: str) -> None:
    clip = {"step": "clip", "window": [0, 9], "channel": channel}
    assert value("preprocessing.0", channels=channels, preprocessing=[clip]).endswith(end)


def test_transforms_show_what_can_happen() -> None:
    augmentation = [{"transform": "spatial"}, {"transform": "mirror"}]
    spatial = value("augmentation.0", augmentation=augmentation)
    assert "rotation probability 20 %" in spatial
    assert "x -30 to 30° y -30 to 30° z -30 to 30°" in spatial
    assert "elastic alpha" not in spatial  # its probability is 0
    mirror = value("augmentation.1", augmentation=augmentation)
    assert mirror == "mirroring: axes x y z, probability 100 %"


@pytest.mark.parametrize(
    ("key", "changes", "text"),
    [
        ("sampling.patch_size", {"sampling": {"patch_size": [16, 16, 8]}}, "16 x 16 x 8 voxels"),
        ("target_spacing_mm", {"target_spacing_mm": [1.58, 1.58, 2.7]}, "1.58 x 1.58 x 2.7 mm"),
        ("target_spacing_mm", {"target_spacing_mm": [1.25, 1.0, None]}, "1.25 x 1 x own mm"),
        ("sampling.foreground_share", {"sampling": {"foreground_share": 0.33}}, "33 %"),
        ("sampling.foreground_share", {"sampling": {"foreground_share": 0}}, "0 %"),
        ("network.features", {"network": {"features": [32, 64]}}, "32, 64"),
        ("network.strides", {}, "1 x 1 x 1, 2 x 2 x 2"),
        ("training.seconds", {"training": {"seconds": None}}, "none"),
        ("training.seconds", {"training": {"seconds": 90.0}}, "90 s"),
        ("training.loss.loss", {}, "dice_cross_entropy"),
        (
            "labels",
            {"labels": {"background": [0], "organ_a": [1, 2]}},
            "background 0, organ_a 1, 2",
        ),
        ("inference.mirror_axes", {"inference": {"mirror_axes": [0, 1]}}, "x y"),
        ("inference.mirror_axes", {"inference": {"mirror_axes": []}}, "none"),
        ("skipped_cases", {"skipped_cases": ["case_7"]}, "case_7"),
        (
            "shares.0",
            {"shares": [{"label": 2, "container": [1]}]},
            "label 2 as a share of labels 2, 1",
        ),
        (
            "evaluation.tolerances.0",
            {"evaluation": {"tolerances": [{"labels": [1, 2], "mm": 3}]}},
            "labels 1, 2: 3 mm",
        ),
        (
            "evaluation.merged.0",
            {"evaluation": {"merged": [{"name": "both", "labels": [1, 2]}]}},
            "both: mean of labels 1, 2",
        ),
        (
            "evaluation.colours.0",
            {"evaluation": {"colours": [{"labels": [1], "colour": "#D55E00"}]}},
            "labels 1: #D55E00",
        ),
    ],
)
def test_values(key: str, changes: dict[str, Any], text: str) -> None:
    found = value(key, **changes)
    assert found == text


# --- the table ---


def test_a_citation_is_shown_once_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"background": (0,), "left": (1,), "right": (2,), "infection": (3,)}
    plan = composed(labels=labels, task="Task001_COVID")
    evidence = {row.key: row.evidence for row in rows(plan) if row.source == "Task001_COVID.json5"}
    assert all(evidence.values())
    assert evidence["sampling.patch_size"] == "journal, section 2.4"
    assert evidence["augmentation.4"].startswith("journal, section 2.3")
    assert "; variance: MIScnn" in evidence["augmentation.4"]
    explain(plan)
    printed = capsys.readouterr().out
    assert printed.count("Müller") == 1
    assert any(line.startswith("journal: Müller") for line in printed.splitlines())


def test_the_table_is_complete_and_narrow_without_a_terminal(
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


def test_brackets_and_colons_in_names_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    why = {"training.epochs": {"source": "overrides [bold]a[/b].json5", "evidence": ":smile: [/]"}}
    labels = {"background": [0], "[red]tumour[/x]": [1]}
    explain(tiny_plan(task="Task[/]", labels=labels, provenance=why))
    printed = capsys.readouterr().out
    for text in ("[bold]a[/b].json5", ":smile: [/]", "[red]tumour[/x]", "Task[/]"):
        assert text in printed
