"""What is learned from a cross-validation, on real label maps with islands put in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from autoseg.common.errors import DataError
from autoseg.common.files import read_json, write_json
from autoseg.evaluation.evaluate import CrossValidation, evaluate_case, gather
from autoseg.evaluation.labels import ScoredClasses
from autoseg.evaluation.learn_postprocessing import Learned, label_pairs, learn, mean_dice, update
from autoseg.evaluation.metrics import METRICS, Overlap, cut_masks, overlap
from autoseg.evaluation.scores import CaseScores, Summary
from autoseg.image.image import read_label
from autoseg.image.label_writer import write_label
from autoseg.plan.plan import Plan, make_plan
from autoseg.prediction.postprocessing import KeepLargest, Postprocessing
from tests.dataset.making import HIPPOCAMPUS, write_scan
from tests.making import REGIONS, grid, tiny_plan

LabelMap = NDArray[Any]
CASES = ("hippocampus_003", "hippocampus_008", "hippocampus_017", "hippocampus_023")
TRUTHS = tuple(HIPPOCAMPUS / "labelsTr" / f"{case}.nii.gz" for case in CASES)
LABELS = {"background": [0], "Anterior": [1], "Posterior": [2]}


def hippocampus_plan() -> Plan:
    return make_plan(tiny_plan().model_dump(mode="json") | {"labels": LABELS}, "the plan")


def same(truth: LabelMap) -> LabelMap:
    return truth


def eroded(truth: LabelMap) -> LabelMap:
    """A prediction that misses something, but makes nothing up."""
    prediction = truth.copy()
    prediction[::3] = 0
    return prediction


def with_island(value: int) -> Callable[[LabelMap], LabelMap]:
    """A prediction with some voxels of a class far from it."""

    def predict(truth: LabelMap) -> LabelMap:
        prediction = truth.copy()
        x, y, z = np.argwhere(truth == 0)[0]
        prediction[x : x + 2, y : y + 3, z : z + 2] = value
        return prediction

    return predict


def in_two_pieces(value: int) -> Callable[[LabelMap], LabelMap]:
    """A prediction that finds only both ends of a class: keeping one would be worse."""

    def predict(truth: LabelMap) -> LabelMap:
        prediction = truth.copy()
        where = np.argwhere(truth == value)
        middle = int(np.median(where[:, 1]))
        gap = prediction[:, middle]
        gap[gap == value] = 0
        return prediction

    return predict


def validated(
    folder: Path,
    plan: Plan,
    predict: Callable[[LabelMap], LabelMap],
    truths: Sequence[Path] = TRUTHS,
) -> CrossValidation:
    """Two folds whose predictions a function makes from the truth."""
    plan.save(folder / "plan.json")
    labels = dict(list(plan.labels.items())[1:])
    for fold in (0, 1):
        where = folder / f"fold_{fold}" / "validation"
        scores = []
        for truth in truths[fold::2]:
            label, geometry = read_label(truth)
            write_label(where / truth.name, predict(label), geometry)
            scores.append(
                evaluate_case(truth, where / truth.name, ScoredClasses(labels, plan.ignore_label))
            )
        Summary(tuple(scores)).save(where / "summary.json")
        write_json(where / "predictions.json", {"plan_id": plan.id})
    return gather(folder, 2)


def chosen(learned: Learned) -> list[str]:
    return [step.name for step in learned.steps]


def test_islands_are_learned_to_be_removed(tmp_path: Path) -> None:
    plan = hippocampus_plan()
    found = learn(tmp_path, validated(tmp_path, plan, with_island(1)), plan, 1)
    assert chosen(found) == ["all foreground"]
    assert found.dice_after == {"Anterior": 1.0, "Posterior": 1.0}
    assert found.dice_before["Anterior"] is not None
    assert found.dice_before["Anterior"] < 0.998
    assert (found.learned_on.folds, found.learned_on.cases) == ((0, 1), 4)
    tried = {attempt.name: attempt.chosen for attempt in found.tried}
    assert tried == {"all foreground": True, "Anterior": False, "Posterior": False}


@pytest.mark.parametrize("predict", [same, eroded])
def test_without_islands_nothing_is_chosen(
    tmp_path: Path, predict: Callable[[LabelMap], LabelMap]
) -> None:
    plan = hippocampus_plan()
    found = learn(tmp_path, validated(tmp_path, plan, predict), plan, 1)
    if predict is same:
        assert chosen(found) == []
        assert found.dice_before == found.dice_after == {"Anterior": 1.0, "Posterior": 1.0}
    assert all(found.dice_after[name] >= found.dice_before[name] for name in found.dice_before)  # type: ignore[operator]


def test_a_class_alone_where_all_foreground_together_would_do_harm(tmp_path: Path) -> None:
    """Class 2 lies in two pieces, far apart, rightly; class 1 has an island."""
    truth = np.zeros((16, 10, 8), np.uint8)
    truth[1:4, 1:8, 1:6] = 2
    truth[12:15, 1:7, 1:6] = 2
    truth[6:9, 1:7, 1:6] = 1
    predicted = truth.copy()
    predicted[5:7, 9, 7] = 1
    for name in ("a", "b"):
        write_scan(tmp_path / f"{name}.nii.gz", truth)
    truths = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    plan = hippocampus_plan()
    validation = validated(tmp_path / "m", plan, lambda _: predicted, truths)
    found = learn(tmp_path / "m", validation, plan, 1)
    assert chosen(found) == ["Anterior"]
    assert found.dice_after == {"Anterior": 1.0, "Posterior": 1.0}
    assert [row[0::3] for row in found.rows()[1:]] == [
        ("all foreground", "no"),
        ("Anterior", "yes"),
        ("Posterior", "no"),
    ]


def test_what_raises_the_mean_but_lowers_a_class_is_not_chosen(tmp_path: Path) -> None:
    """Together class 2 would lose a true piece, class 1 a larger false one."""
    truth = np.zeros((16, 10, 8), np.uint8)
    truth[1:5, 1:8, 1:6] = 1
    truth[5:7, 1:8, 1:6] = 2
    truth[15, 0, 0] = 2
    predicted = truth.copy()
    predicted[10:13, 2:7, 1:5] = 1
    write_scan(tmp_path / "a.nii.gz", truth)
    write_scan(tmp_path / "b.nii.gz", truth)
    plan = hippocampus_plan()
    validation = validated(
        tmp_path / "m", plan, lambda _: predicted, [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    )
    found = learn(tmp_path / "m", validation, plan, 1)
    assert chosen(found) == ["Anterior"]
    assert found.dice_after == {"Anterior": 1.0, "Posterior": 1.0}


def test_regions_are_tried_one_after_the_other(tmp_path: Path) -> None:
    plan = tiny_plan(**REGIONS)
    truth = np.zeros((14, 10, 8), np.uint8)
    truth[1:8, 1:8, 1:7] = 1
    truth[2:7, 2:7, 2:6] = 2
    truth[3:6, 3:6, 3:5] = 4
    predicted = truth.copy()
    predicted[10:12, 2:5, 2:5] = 4
    write_scan(tmp_path / "a.nii.gz", truth)
    write_scan(tmp_path / "b.nii.gz", truth)
    validation = validated(
        tmp_path / "m", plan, lambda _: predicted, [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    )
    found = learn(tmp_path / "m", validation, plan, 1)
    assert [attempt.name for attempt in found.tried] == [
        "all foreground",  # the whole region is just that
        "core",
        "enhancing",
    ]
    assert chosen(found) == ["all foreground"]
    assert found.dice_after == {"whole": 1.0, "core": 1.0, "enhancing": 1.0}


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, (4, 5, 3), elements=st.sampled_from([0, 1, 2, 4, 7])),
    hnp.arrays(np.uint8, (4, 5, 3), elements=st.sampled_from([0, 1, 2, 4])),
    st.booleans(),
)
def test_dice_is_that_of_the_metrics(
    tmp_path_factory: pytest.TempPathFactory, truth: LabelMap, predicted: LabelMap, regions: bool
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    plan = tiny_plan(ignore_label=7, **(REGIONS if regions else {}))
    for name, label in (("truth", truth), ("predicted", predicted)):
        write_label(folder / f"{name}.nii", label, grid(label.shape))
    steps = (KeepLargest("all", (1, 2, 4)), KeepLargest("two", (2,)))
    pairs = [(folder / "truth.nii", folder / "predicted.nii")]
    raw, processed = mean_dice([(), steps], pairs, plan, 1)
    dice = METRICS["Dice"].of
    after = predicted.copy()
    Postprocessing("", steps).apply(after)
    for name, values in list(plan.labels.items())[1:]:
        assert raw[name] == dice(overlap(cut_masks(truth, predicted, values, 7)))
        assert processed[name] == dice(overlap(cut_masks(truth, after, values, 7)))


def test_what_was_learned_is_written_once(tmp_path: Path) -> None:
    plan = hippocampus_plan()
    validation = validated(tmp_path, plan, with_island(2))
    first = update(tmp_path, validation, 2, 1)
    path = tmp_path / "postprocessing.json"
    written = read_json(path)
    assert written["plan_id"] == plan.id
    assert written["steps"] == [{"name": "all foreground", "keep_largest": [1, 2]}]
    (step,) = Postprocessing.from_json(written, "").steps
    assert (step.name, step.keep_largest) == (first.steps[0].name, first.steps[0].keep_largest)
    before = path.stat().st_mtime_ns
    assert update(tmp_path, validation, 2, 1) == first
    assert path.stat().st_mtime_ns == before
    again = validated(tmp_path, plan, in_two_pieces(2))
    assert chosen(update(tmp_path, again, 2, 1)) == []
    path.write_text("{}")
    assert chosen(update(tmp_path, again, 2, 1)) == []
    assert read_json(path)["steps"] == []


def test_all_folds_are_needed(tmp_path: Path) -> None:
    plan = hippocampus_plan()
    validation = validated(tmp_path, plan, same)
    with pytest.raises(DataError, match=r"fold 2;"):
        update(tmp_path, gather(tmp_path, 3), 3, 1)
    with pytest.raises(DataError, match=r"folds 2, 3;"):
        update(tmp_path, gather(tmp_path, 4), 4, 1)
    with pytest.raises(DataError, match=r"splits\.json"):
        update(tmp_path, validation, 0, 1)
    record = tmp_path / "fold_1" / "validation" / "predictions.json"
    write_json(record, {"plan_id": "another"})
    with pytest.raises(DataError, match=r"predictions\.json.*another"):
        update(tmp_path, validation, 2, 1)
    assert not (tmp_path / "postprocessing.json").exists()


def test_a_label_map_that_is_gone_is_named(tmp_path: Path) -> None:
    plan = hippocampus_plan()
    validation = validated(tmp_path, plan, same)
    path = tmp_path / "fold_0" / "validation" / f"{CASES[0]}.nii.gz"
    path.unlink()
    with pytest.raises(DataError, match=str(path)):
        update(tmp_path, validation, 2, 1)


def test_partly_annotated_cases_are_left_out(tmp_path: Path) -> None:
    """Their references lack classes, whose predictions would look like errors."""

    def scores(case: str, *classes: str) -> CaseScores:
        for name in (f"{case}.truth", f"{case}.nii.gz"):
            path = tmp_path / "fold_0" / "validation" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        reference = tmp_path / "fold_0" / "validation" / f"{case}.truth"
        labels = dict.fromkeys(classes, Overlap(1, 0, 0, 1))
        return CaseScores(case, str(reference), f"{case}.nii.gz", labels, {})

    whole, part = scores("a", "liver", "spleen"), scores("b", "liver")
    found = label_pairs(tmp_path, CrossValidation({0: Summary((whole, part))}, ()))
    assert list(found) == ["a"]
    with pytest.raises(DataError, match="partly annotated"):
        label_pairs(tmp_path, CrossValidation({0: Summary((scores("c", "spleen"), part))}, ()))
