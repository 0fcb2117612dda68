from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from autoseg.common.errors import AutosegError, PlanError
from autoseg.plan.plan import Plan, load_plan, make_plan
from autoseg.planner.overrides import merge
from tests.making import tiny_plan

STEPS: list[dict[str, Any]] = [
    {"step": "crop_to_nonzero"},
    {"step": "clip", "window": [-1250, 250], "channel": 0},
    {"step": "rescale", "range": [0, 255], "whole_numbers": True},
    {"step": "resample", "rounding": "down", "anisotropy": None},
    {"step": "z_score", "mean": 0.1, "std": 1e-3},
]
TRANSFORMS: list[dict[str, Any]] = [
    {"transform": "spatial", "elastic_probability": 0.15},
    {"transform": "mirror", "axes": [0, 1]},
    {"transform": "gaussian_noise"},
    {"transform": "gaussian_blur"},
    {"transform": "brightness"},
    {"transform": "contrast", "factor": [0.3, 3]},
    {"transform": "low_resolution"},
    {"transform": "gamma", "invert": True},
]


def full_plan(**changes: Any) -> Plan:
    """A plan with every kind of step and transform."""
    values: dict[str, Any] = {"preprocessing": STEPS, "augmentation": TRANSFORMS}
    return tiny_plan(**merge(values, changes))


def all_leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, entry in entries:
        below = isinstance(entry, dict | list) and entry
        found += all_leaves(entry, (*path, key)) if below else [(*path, key)]
    return found


def changed(values: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(values))
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copied


def alternatives(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value + 2, value * 2, value - 1, value / 2]
    if isinstance(value, str):
        return [f"{value}x", "last", "uniform", "batch", "relu", "glorot", "float32", "nearest"]
    return [1, 0.5, [0]]


@pytest.mark.parametrize("plan", [tiny_plan(), full_plan()], ids=["tiny", "full"])
def test_a_plan_survives_its_file(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "Pläne für alle" / "plan.json"
    plan.save(path)
    loaded = load_plan(path)
    assert loaded == plan
    assert (loaded.id, loaded.preprocessing_id) == (plan.id, plan.preprocessing_id)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert next(iter(json.loads(path.read_text(encoding="utf-8")))) == "id"


def test_names_in_any_script_survive(tmp_path: Path) -> None:
    plan = full_plan(labels={"Hintergrund": [0], "Läsion ½": [7], "肺": [65535]})
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


def test_id_changes_with_every_value() -> None:
    plan = full_plan()
    values = plan.model_dump(mode="json", exclude={"measured", "provenance", "evaluation"})
    tried = 0
    for path in all_leaves(values):
        for value in alternatives(_at(values, path)):
            try:
                other = make_plan(changed(values, path, value), "changed")
            except PlanError:
                continue
            if other == plan:  # such as 1 for 1.0
                continue
            tried += 1
            assert other.id != plan.id, path
    assert tried > 100


def _at(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def test_the_id_is_twelve_hexadecimal_digits() -> None:
    assert len(tiny_plan().id) == 12
    assert int(tiny_plan().id, 16) >= 0


def test_provenance_and_measurements_do_not_change_the_id() -> None:
    provenance = {"sampling.batch_size": {"source": "a rule", "evidence": "figures"}}
    other = tiny_plan(provenance=provenance, measured={"seconds": 60.0})
    assert other != tiny_plan()
    assert other.id == tiny_plan().id


@pytest.mark.parametrize(
    "change",
    [
        {"channels": ["MR"]},
        {"labels": {"background": [0], "organ": [1, 2]}},
        {"labels": {"background": [0], "tumour": [2], "organ": [1]}},
        {"ignore_label": 9},
        {"target_spacing_mm": [1.0, 1.0, 1.1]},
        {"preprocessing": STEPS[:-1]},
        {"preprocessing": [STEPS[1], STEPS[0], *STEPS[2:]]},
    ],
)
def test_preprocessing_id_changes_with_what_affects_a_preprocessed_case(
    change: dict[str, Any],
) -> None:
    assert full_plan(**change).preprocessing_id != full_plan().preprocessing_id


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"sampling": {"batch_size": 7}},
        {"augmentation": []},
        {"network": {"features": [3, 5]}},
        {"training": {"epochs": 9}},
        {"splits": {"folds": 3}},
        {"inference": {"overlap": [0, 0, 0]}},
        {"measured": {"seconds": 1}},
    ],
)
def test_preprocessing_id_ignores_everything_else(change: dict[str, Any]) -> None:
    assert full_plan(**change).preprocessing_id == full_plan().preprocessing_id


def test_the_order_of_labels_changes_the_id() -> None:
    reordered = full_plan(labels={"background": [0], "tumour": [2], "organ": [1]})
    assert reordered.id != full_plan().id


def test_a_plan_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        tiny_plan().sampling.batch_size = 3  # type: ignore[misc]


def test_reduction_of_many_stages_is_exact() -> None:
    stages = 70  # 2**70 does not fit into 64 bits
    network = {
        "features": [1] * stages,
        "strides": [[1, 1, 1], *[[2, 1, 1]] * (stages - 1)],
        "kernels": [[1, 1, 1]] * stages,
        "blocks_encoder": [1] * stages,
        "blocks_decoder": [1] * (stages - 1),
    }
    plan = tiny_plan(network=network, sampling={"patch_size": [2 ** (stages - 1), 8, 8]})
    assert plan.network.reduction == (2 ** (stages - 1), 1, 1)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    tiny_plan().save(path)
    whole = path.read_text(encoding="utf-8")
    for cut in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_text(whole[:cut])
        with pytest.raises(AutosegError, match=r"plan\.json"):
            load_plan(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"plan\.json"):
        load_plan(tmp_path / "plan.json")


def test_compiling_by_default_keeps_the_ids_of_plans_without() -> None:
    ids = {wish: tiny_plan(training={"compile": wish}).id for wish in ("auto", False, True)}
    assert ids["auto"] == ids[False] != ids[True]
    assert tiny_plan().model_dump(mode="json")["training"]["compile"] == "auto"


def test_patches_of_partly_annotated_cases_are_not_mixed() -> None:
    annotated = {"a": ["organ"]}
    assert tiny_plan(annotated=annotated, sampling={"mix_probability": 0}).annotated
    with pytest.raises(PlanError, match=r"mix_probability is 0\.5"):
        tiny_plan(annotated=annotated, sampling={"mix_probability": 0.5})
