from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from autoseg.common.errors import PlanError
from autoseg.plan.reading import make_plan
from autoseg.planner.overrides import merge
from tests.making import TINY

CLIP = {"step": "clip"}


def refused(change: dict[str, Any]) -> str:
    """The message for a valid plan with this change."""
    with pytest.raises(PlanError) as caught:
        make_plan(merge(TINY, change), "plan.json")
    message = str(caught.value)
    assert message.startswith("plan.json: ")
    assert "\n" not in message
    return message.removeprefix("plan.json: ")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"sampling": {"patch_size": [8, 9, 8]}},
            "sampling.patch_size is 9 along y, which the network's strides cannot divide; "
            "take 8 or 10",
        ),
        (
            {"sampling": {"patch_size": [8, 8, 1]}},
            "sampling.patch_size is 1 along z, which the network's strides cannot divide; take 2",
        ),
        (
            {"inference": {"overlap": [4, 8, 4]}},
            "inference.overlap is 8 along y; take 0 to 7, less than the patch",
        ),
        (
            {"inference": {"overlap": [4, 4, -1]}},
            "inference.overlap is -1 along z; take 0 to 7, less than the patch: half of it is [",
        ),
        (
            {"inference": {"mirror_axes": [0, 2]}, "augmentation": [{"transform": "gamma"}]},
            "inference.mirror_axes has [0, 2], along which no mirror transform of the "
            "augmentation trains the network; take them out, or train with them",
        ),
        (
            {"preprocessing": [{"step": "crop_to_nonzero"}, {"step": "z_score", "channel": 1}]},
            "preprocessing.1.channel is 1, but there are 1 channels, counted from 0",
        ),
        (
            {"labels": {"organ": [1], "background": [0]}},
            "labels: the first class is the background, which covers the value 0",
        ),
        ({"labels": {}}, "labels: the first class is the background, which covers the value 0"),
        (
            {"labels": {"background": [0]}},
            "labels: there is nothing to find besides the background",
        ),
        (
            {"labels": {"background": [0], "a": [1, 2], "b": [2]}},
            "labels: 'a' and 'b' both cover the value 2; give regions_class_order, the value that "
            "each class paints, or keep them apart",
        ),
        (
            {"labels": {"background": [0], "a": [1, 1]}},
            "labels: the value 1 stands twice in 'a'; keep one",
        ),
        (
            {"regions_class_order": [1]},
            "regions_class_order has 1 values for 2 classes besides the background; give one for "
            "each",
        ),
        (
            {"regions_class_order": [1, 3]},
            "regions_class_order: no class covers the value 3",
        ),
        (
            {"regions_class_order": [0, 1]},
            "regions_class_order: no class covers the value 0",
        ),
        (
            {"configuration": "3d_cascade_fullres"},
            "previous_stage is None in a plan of 3d_cascade_fullres; 3d_cascade_fullres names the "
            "plan that it refines, the others none",
        ),
        (
            {"previous_stage": "default-3d_lowres"},
            "previous_stage is 'default-3d_lowres' in a plan of 3d_fullres",
        ),
        (
            {"configuration": "4d"},
            "configuration is '4d': input should be '2d', '3d_lowres', '3d_fullres' or",
        ),
        (
            {"target_spacing_mm": [1, -0.5, 1]},
            "target_spacing_mm.1 is -0.5: input should be greater than 0",
        ),
        (
            {"ignore_label": 2},
            "ignore_label is 2, which a class of labels covers; a value is either learnt or "
            "ignored",
        ),
        (
            {"shares": [{"label": 7, "container": [1]}]},
            "shares: no class covers the label 7",
        ),
        (
            {"shares": [{"label": 2, "container": [1, 8]}]},
            "shares: no class covers the label 8",
        ),
        (
            {"shares": [{"label": 2, "container": [1, 2]}]},
            "shares: the label 2 is in its own container; leave it out there",
        ),
        (
            {"preprocessing": [CLIP | {"window": [250, -1250]}]},
            "preprocessing.0.window: [250.0, -1250.0] is upside down; write [low, high]",
        ),
        (
            {"preprocessing": [CLIP | {"window": [5, 5]}]},
            "preprocessing.0: the window [5.0, 5.0] is empty; write [low, high]",
        ),
        (
            {"augmentation": [{"transform": "gamma", "gamma": [1.5, 0.7]}]},
            "augmentation.0.gamma: [1.5, 0.7] is upside down; write [low, high]",
        ),
        (
            {"augmentation": [{"transform": "spatial", "scaling": [-1, 1.2]}]},
            "augmentation.0.scaling.0 is -1: input should be greater than 0",
        ),
        (
            {"augmentation": [{"transform": "gaussian_noise", "variance": [-0.1, 0.1]}]},
            "augmentation.0.variance.0 is -0.1: input should be greater than or equal to 0",
        ),
        (
            {"target_spacing_mm": [1, 0, 1]},
            "target_spacing_mm.1 is 0: input should be greater than 0",
        ),
        (
            {"target_spacing_mm": [1, 1, math.nan]},
            "target_spacing_mm.2 is nan: input should be a finite number",
        ),
        (
            {"training": {"optimizer": {"optimizer": "adam", "learning_rate": math.inf}}},
            "training.optimizer.learning_rate is inf: input should be a finite number",
        ),
        (
            {"training": {"optimizer": {"optimizer": "adam", "momentum": 0.9}}},
            "unknown key 'training.optimizer.momentum'; did you mean 'momentum'?",
        ),
        (
            {"sampling": {"batchsize": 2}},
            "unknown key 'sampling.batchsize'; did you mean 'batch_size'?",
        ),
        (
            {"augmentation": [{"transform": "gamma", "gama": [1, 2]}]},
            "unknown key 'augmentation.0.gama'; did you mean 'gamma'?",
        ),
        ({"qqqqqq": 1}, "unknown key 'qqqqqq'"),
        (
            {"sampling": {"batch_size": "2"}},
            "sampling.batch_size is '2': input should be a valid integer",
        ),
        (
            {"sampling": {"batch_size": 2.5}},
            "sampling.batch_size is 2.5: input should be a valid integer",
        ),
        (
            {"sampling": {"batch_size": True}},
            "sampling.batch_size is True: input should be a valid integer",
        ),
        (
            {"training": {"keep": "first"}},
            "training.keep is 'first': input should be 'last' or 'best_training_loss'",
        ),
        (
            {"training": {"seed": 2**32}},
            "training.seed is 4294967296: input should be less than 4294967296",
        ),
        (
            {"labels": {"background": [0], "organ": [65536]}},
            "labels.organ.0 is 65536: input should be less than 65536",
        ),
        (
            {"labels": {"background": [0], "clip": [-1]}},
            "labels.clip.0 is -1: input should be greater than or equal to 0",
        ),
        (
            {"network": {"features": [2]}},
            "network: a U-Net has at least two stages; give features for each",
        ),
        (
            {"network": {"features": [2, 4, 8]}},
            "network: strides has 2 entries for 3 stages of features",
        ),
        (
            {"network": {"blocks_decoder": [1, 1]}},
            "network: blocks_decoder needs 1 entries, one less than features",
        ),
        (
            {"network": {"strides": [[2, 2, 2], [2, 2, 2]]}},
            "network: the first stage keeps the full resolution: its stride is 1, 1, 1",
        ),
    ],
)
def test_one_line_names_the_key_and_what_to_do(change: dict[str, Any], told: str) -> None:
    assert refused(change).startswith(told)


def test_an_unknown_step_is_told_with_the_known_ones() -> None:
    message = refused({"preprocessing": [{"step": "cut"}]})
    assert message.startswith("preprocessing.0 is {'step': 'cut'}")
    assert "'crop_to_nonzero', 'clip', 'rescale', 'resample', 'z_score'" in message


def test_how_many_more_are_wrong() -> None:
    assert refused({"channels": [], "ignore_label": -1}).endswith("(and 1 more)")


def test_a_missing_key_is_named() -> None:
    values = copy.deepcopy(TINY)
    del values["sampling"]["patch_size"]
    with pytest.raises(PlanError, match=r"^p: sampling\.patch_size is missing$"):
        make_plan(values, "p")


@pytest.mark.parametrize("values", [[], None, "plan", 3])
def test_other_json_is_no_plan(values: Any) -> None:
    with pytest.raises(PlanError, match=r"^x is not a plan: it holds .*, not an object$"):
        make_plan(values, "x")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_formats_are_told(version: Any) -> None:
    with pytest.raises(PlanError, match=r"has plan format .*reads format 1: plan the task again"):
        make_plan(TINY | {"format_version": version}, "x")


def test_deep_nesting_is_refused() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(PlanError, match="nested too deeply"):
        make_plan(TINY | {"measured": {"deep": deep}}, "x")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", ".hidden", "a b", "a\n"])
def test_a_name_must_be_a_plain_folder(name: str) -> None:
    assert "name" in refused({"name": name})


@pytest.mark.parametrize("name", ["default", "5m", "größer", "v1.2-b_3"])
def test_names_that_are_fine(name: str) -> None:
    assert make_plan(TINY | {"name": name}, "x").name == name
