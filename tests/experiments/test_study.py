"""The file of a study: its keys, and the errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoseg.common.errors import PlanError
from autoseg.experiments import runs
from autoseg.experiments.runs import StudyRun, joined, runs_of, variants
from autoseg.experiments.study import read_study, study_names, with_slurm
from autoseg.plan.plan import Plan
from autoseg.planner.compose import PlanOptions
from autoseg.workflow.workspace import Workspace
from tests.experiments.studying import OVERRIDES, TASK, TEST_SET, study, write_task
from tests.making import tiny_plan


def write(folder: Path, name: str, values: dict[str, Any]) -> str:
    path = folder / f"{name}.json5"
    path.write_text(f"// by hand\n{json.dumps(values)}", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("size", ["covid", "phantom"])
def test_the_papers_studies_are_29_models(size: str, tmp_path: Path) -> None:
    sensitivity, ablation = (read_study(f"{size}_{kind}") for kind in ("sensitivity", "ablation"))
    first, second = (runs_of(each, Workspace(tmp_path)) for each in (sensitivity, ablation))
    assert (len(first), len(second)) == (14, 20)
    both = joined([*first, *second])
    assert len(both) == 29
    shared = {str(run) for run in first} & {str(run) for run in second}
    assert shared == {f"default-k5 fold {fold}" for fold in range(5)}
    tested = [run for run in both if run.held_out]
    assert {str(run) for run in tested} == {str(run) for run in first}
    assert {each.classes["infection"] for run in tested for each in run.held_out} == {(1,)}
    # The same plan in both: else the second study refuses the plan of the first.
    plans = {v.name: v.options for v in variants(sensitivity)}
    again = {v.name: v.options for v in variants(ablation)}["default-k5"]
    mine = plans["default-k5"]
    assert [layer.values for layer in mine.layers] == [layer.values for layer in again.layers]
    assert mine.reference == again.reference == "Task001_COVID"


def test_k_and_seeds_make_plans(tmp_path: Path) -> None:
    made = study(plans=[{"name": "a"}, {"name": "b", "k": [3], "seeds": []}], seeds=[1, 2])
    names = [variant.name for variant in variants(made)]
    assert names == ["a-k2-s1", "a-k2-s2", "b-k3"]
    (layer,) = next(iter(variants(made))).options.layers
    assert layer.values["splits"] == {"folds": 2}
    assert layer.values["training"] == OVERRIDES["training"] | {"seed": 1}
    assert layer.source == "study tiny"
    assert len(runs_of(made, Workspace(tmp_path))) == 7
    assert len(runs_of(study(folds=[1]), Workspace(tmp_path))) == 1


def test_a_plan_of_unknown_folds_has_no_runs_yet(tmp_path: Path) -> None:
    made = study(k=None)
    assert [variant.name for variant in variants(made)] == ["default"]
    assert runs_of(made, Workspace(tmp_path)) == []


def test_runs_are_the_same_in_all_studies() -> None:
    one, other = StudyRun(TASK, "p", 0), StudyRun(TASK, "p", 0, study(held_out=[TEST_SET]).held_out)
    (found,) = joined([one, other, one])
    assert found.held_out == other.held_out
    changed = TEST_SET | {"classes": {"tumour": [1]}}
    with pytest.raises(PlanError, match=r"test sets .*'elsewhere'"):
        joined([other, StudyRun(TASK, "p", 0, study(held_out=[changed]).held_out)])
    with pytest.raises(PlanError, match=r"p fold 0 .* pretrained"):
        joined([one, StudyRun(TASK, "p", 0, pretrained="models/x")])


def test_a_study_extends_another(tmp_path: Path) -> None:
    below = {"task": TASK, "k": [2], "title": "below", "slurm": {"gpus": 0}}
    write(tmp_path, "below", below)
    made = read_study(write(tmp_path, "above", {"extends": "below.json5", "k": [3]}))
    assert (made.name, made.title, made.k, made.slurm.gpus) == ("above", "below", (3,), 0)
    write(tmp_path, "below", below | {"extends": "above.json5"})
    with pytest.raises(PlanError, match=r"above\.json5 -> below\.json5 -> above"):
        read_study(str(tmp_path / "above.json5"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": []}, "unknown key 'plan'; did you mean 'plans'"),
        ({"plans": [{"refrence": "x"}]}, r"unknown key 'plans\.0\.refrence'; did you mean 'refer"),
        ({"plans": []}, "plans is"),
        ({"plans": [{}, {}]}, "plans has the name 'default' twice"),
        ({"k": [1]}, r"k\.0 is 1: input should be greater than or equal to 2"),
        ({"k": ["2"]}, r"k\.0 is '2'"),
        ({"held_out": [{"name": "x"}]}, r"held_out\.0\.images is missing"),
        ({"held_out": [TEST_SET | {"classes": {}}]}, r"held_out\.0\.classes is \{\}"),
        ({"plans": [{"name": "../a"}]}, r"plans\.0\.name is '\.\./a'"),
        ({"name": "a"}, "'name'"),
        ({"extends": 3}, "extends is 3"),
        ({"extends": "nothing"}, "'nothing'"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = write(tmp_path, "wrong", {"task": TASK} | change)
    with pytest.raises(PlanError, match=message):
        read_study(file)


def test_an_unknown_study_lists_the_included_ones(tmp_path: Path) -> None:
    assert {"covid_sensitivity", "covid_ablation"} <= set(study_names())
    with pytest.raises(PlanError, match=r"'covid'.* covid_ablation, covid_sensi"):
        read_study("covid")


def test_the_command_line_changes_slurm_settings() -> None:
    changed = with_slurm(study(), ["gpus=0", "time=3h", "options.account=lab"])
    slurm = changed.slurm
    assert (slurm.gpus, slurm.time, slurm.options) == (0, "3h", {"account": "lab"})
    with pytest.raises(PlanError, match=r"--slurm: unknown key 'slurm\.gpu'; did you mean 'gpus'"):
        with_slurm(study(), ["gpu=0"])
    with pytest.raises(PlanError, match=r"--slurm gpus: .*gpus=1"):
        with_slurm(study(), ["gpus"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"report": {"table_1": "median"}}, ["report.table_1", "medians"]),
        ({"report": {"../table_1": "medians"}}, ["report"]),
        ({"paper": "mueller_2020"}, ["'mueller_2020'", "mueller_2021"]),
        ({"report": {"table_9": "related_work"}}, ["table_9", "related_work"]),
    ],
)
def test_unknown_tables_and_papers_are_found_before_anything_runs(
    values: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(PlanError) as caught:
        read_study(write(tmp_path, "own", {"task": TASK} | values))
    assert all(word in str(caught.value) for word in words)


def test_arms_of_a_study_share_what_the_time_budget_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each group of arms is measured once; arms of another planner are measured themselves."""
    plans = [
        {"name": "one", "time_budget": "5m"},
        {"name": "two", "time_budget": "5m", "overrides": {"training": {"seed": 7}}},
        {"name": "residual", "time_budget": "5m", "planner": "resenc_m"},
    ]
    given: dict[str, Any] = {}

    def write(_w: object, _s: object, options: PlanOptions, *_: object) -> Plan:
        given[options.name] = options.measured
        return tiny_plan(name=options.name)

    monkeypatch.setattr(runs, "write_plan", write)
    monkeypatch.setattr(runs, "_check", lambda *_: None)
    runs.prepare_plans([study(plans=plans)], write_task(tmp_path), 1, "cpu")
    assert {name: like and like.name for name, like in given.items()} == {
        "one-k2": None,
        "two-k2": "one-k2",
        "residual-k2": None,
    }
