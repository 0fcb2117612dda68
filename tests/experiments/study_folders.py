"""Folders of studies as `gather` leaves them, with the scores that a paper prints."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoseg.common.files import write_json
from tests.evaluation.making import write_log
from tests.making import tiny_plan

TASK = "Task001_COVID"
LABELS = {"background": [0], "left lung": [1], "right lung": [2], "infection": [3]}
EVALUATION = {
    "merged": [{"name": "lungs", "labels": [1, 2]}],
    "colours": [
        {"labels": [1, 2], "colour": "#0072B2"},
        {"labels": [3], "colour": "#D55E00"},
    ],
}
# Müller et al. 2021, Table 2: lungs / lesion of five folds, and the AVG row that they print.
ABLATION: dict[str, Sequence[tuple[float, float]]] = {
    "no_augmentation_no_preprocessing": (
        *((0.711, 0.031), (0.046, 0.186), (0.190, 0.241)),
        *((0.080, 0.005), (0.520, 0.194)),
    ),
    "no_preprocessing": (
        *((0.397, 0.166), (0.275, 0.050), (0.168, 0.057)),
        *((0.175, 0.114), (0.360, 0.201)),
    ),
    "no_augmentation": (
        *((0.867, 0.530), (0.979, 0.819), (0.951, 0.814)),
        *((0.979, 0.819), (0.964, 0.798)),
    ),
    "default": (
        *((0.907, 0.556), (0.977, 0.801), (0.952, 0.829)),
        *((0.979, 0.853), (0.967, 0.765)),
    ),
}
AVERAGES = ("0.309 / 0.131", "0.275 / 0.118", "0.948 / 0.756", "0.956 / 0.761")
SPREAD = (-0.02, 0.0, 0.02)  # of three cases around a fold's median

Run = tuple[str, int | None, int]  # plan's name in the study, k, fold
Metrics = Mapping[str, float | str]
Score = tuple[str, str, float | Sequence[Metrics]]  # set, class, median Dice or metrics of cases


def write_study(
    workspace: Path,
    runs: Mapping[Run, Sequence[Score]],
    held_out: Sequence[str] = (),
    name: str = "study",
    **values: Any,
) -> Path:
    """Write `study.json`, `results.csv`, plans and logs; a run without scores is missing.

    Values, such as `report`, are those of the study.
    """
    folder = workspace / "experiments" / name
    rows: list[dict[str, Any]] = []
    about = []
    for (variant, k, fold), scores in runs.items():
        plan = variant if k is None else f"{variant}-k{k}"
        place = f"models/{TASK}/{plan}/fold_{fold}"
        run = {"plan": plan, "variant": variant, "k": k, "seed": None, "fold": fold}
        about.append(run | {"folder": place, "state": "done" if scores else "failed"})
        changes = {"task": TASK, "labels": LABELS, "evaluation": EVALUATION}
        tiny_plan(**changes).save((workspace / place).parent / "plan.json")
        if scores:
            write_log(workspace / place, fold, epochs=40 + fold)
        for where, label, found in scores:
            cases = around(found) if isinstance(found, float) else found
            for i, metrics in enumerate(cases):
                case = f"{where}_{fold}_{i}"
                begin = run | {"task": TASK, "set": where, "case": case, "class": label}
                rows.append({**begin, **metrics})
    places = {"images": "nowhere", "labels": "nowhere", "classes": {"infection": [1]}}
    sets = [{"name": each, **places} for each in held_out]
    study = {"task": TASK, "held_out": sets, **values}
    write_json(folder / "study.json", {"study": study, "runs": about})
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["plan"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def around(median: float) -> list[Metrics]:
    """Three cases around a median, without specificity."""
    names = ("Dice", "IoU", "Sensitivity")
    return [dict.fromkeys(names, median + more) | {"Specificity": ""} for more in SPREAD]


def validation_scores(lungs: float, infection: float) -> list[Score]:
    """What a model scores on its validation cases: each lung and both, and the infection."""
    named = {"left lung": lungs, "right lung": lungs, "infection": infection, "lungs": lungs}
    return [("validation", name, value) for name, value in named.items()]


def ablation(workspace: Path, **values: Any) -> Path:
    """The paper's ablation: four plans of five folds."""
    runs: dict[Run, Sequence[Score]] = {
        (plan, 5, fold): validation_scores(*scores)
        for plan, folds in ABLATION.items()
        for fold, scores in enumerate(folds)
    }
    return write_study(workspace, runs, **values)


def sensitivity(
    workspace: Path, without: frozenset[tuple[int, int]] = frozenset(), **values: Any
) -> Path:
    """k = 2 to 5 on validation cases and a test set; the (k, fold) of `without` are missing."""
    runs: dict[Run, Sequence[Score]] = {
        ("default", k, fold): []
        if (k, fold) in without
        else [*validation_scores(0.9, 0.5 + k / 20), ("An_et_al", "infection", 0.4 + k / 20)]
        for k in (2, 3, 4, 5)
        for fold in range(k)
    }
    return write_study(workspace, runs, ["An_et_al"], **values)
