from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoseg.common.errors import PlanError
from autoseg.common.files import to_json
from autoseg.fingerprint import Fingerprint
from autoseg.plan.labels import SegmentCode
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Adam, Cosine, Sgd
from autoseg.planner import overrides
from autoseg.planner.budget import Overhead, Timing, expected_overhead
from autoseg.planner.compose import PlanOptions, compose, other_configurations
from tests.planner.making import fingerprint


def planned(*settings: str, **options: Any) -> Plan:
    return compose(fingerprint(), PlanOptions(settings=settings, **options))


def timed(*settings: str, seconds: float = 300, **options: Any) -> Plan:
    """A plan for a device on which the time of a step grows with feature maps x patches."""

    def measure(plan: Plan) -> Timing:
        step = plan.network.features[0] * plan.sampling.batch_size / 500
        return Timing(step, 0.01, 0.1, "fake")

    timed_options = PlanOptions(settings=settings, seconds=seconds, **options)
    return compose(fingerprint(), timed_options, lambda plan: Overhead(6, 10), measure)


@pytest.fixture
def references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "plans"
    folder.mkdir()
    monkeypatch.setattr(overrides, "plans_folder", lambda: folder)
    return folder / "Task001_Tiny.json5"


def test_without_a_budget_plans_are_equal_to_the_byte() -> None:
    assert to_json(planned().to_json()) == to_json(planned().to_json())
    assert planned().measured == {}
    assert planned().training.seconds is None


def test_the_name_is_the_users() -> None:
    assert planned(name="mine").name == "mine"
    with pytest.raises(PlanError, match=r"name is '\.\./mine'"):
        planned(name="../mine")
    with pytest.raises(PlanError, match=r"name .*--name"):
        planned("name=mine")


@pytest.mark.parametrize(("patients", "folds"), [(None, 5), (9, 5), (5, 5), (4, 4), (2, 2), (1, 2)])
def test_each_of_few_patients_gets_a_fold(patients: int | None, folds: int) -> None:
    plan = planned(patients=patients)
    assert plan.splits.folds == folds
    assert ("splits.folds" in plan.provenance) == (folds < 5)
    assert planned("splits.folds=3", patients=patients).splits.folds == 3


def test_each_layer_overrides_those_below(references: Path, tmp_path: Path) -> None:
    references.write_text("{sampling: {batch_size: 3}, training: {epochs: 3, seed: 3}}")
    overrides = tmp_path / "mit Leerzeichen.json5"
    overrides.write_text("{training: {epochs: 4, steps_per_epoch: 4}, splits: {folds: 4}}")
    plan = planned("splits.folds=6", "training.seed=6", overrides=overrides)
    found = (
        plan.sampling.batch_size,
        plan.training.epochs,
        plan.training.steps_per_epoch,
        plan.splits.folds,
        plan.training.seed,
    )
    assert found == (3, 4, 4, 6, 6)
    sources = {key: why.source for key, why in plan.provenance.items()}
    assert sources["sampling.batch_size"] == "reference plan Task001_Tiny.json5"
    assert sources["training.epochs"] == "overrides mit Leerzeichen.json5"
    assert sources["splits.folds"] == sources["training.seed"] == "--set"
    assert sources["sampling.patch_size"] == "rule: largest patch for data and memory"
    assert plan.provenance["sampling.batch_size"].rule_value == 2
    assert plan.provenance["training.epochs"].rule_value == 1000


def test_the_reference_can_be_disabled(references: Path) -> None:
    references.write_text("{training: {epochs: 3}}")
    assert planned().training.epochs == 3
    assert planned(use_reference=False).training.epochs == 1000


def test_plans_to_compare_share_what_was_measured() -> None:
    first = timed("training.loss.smooth=1", "training.schedule={schedule: 'polynomial'}")
    options = PlanOptions(name="other", seconds=300, measured=first)
    second = compose(fingerprint(), options)  # nothing measures it
    assert second.sampling == first.sampling
    assert second.network == first.network
    assert second.training.steps == first.training.steps
    assert second.measured == first.measured
    assert second.training.loss != first.training.loss  # settings of the first plan are its own
    assert second.training.schedule == timed().training.schedule != first.training.schedule


def test_settings_of_list_entries_see_the_layers_below(references: Path, tmp_path: Path) -> None:
    references.write_text("{preprocessing: [{step: 'clip', window: [0, 1], channel: 0}]}")
    plan = planned("preprocessing.0.window=[-1000,400]")
    assert [step.model_dump() for step in plan.preprocessing] == [
        {"step": "clip", "window": (-1000, 400), "channel": 0, "scaled_scans": "clip"}
    ]
    overrides = tmp_path / "o.json5"
    overrides.write_text("{preprocessing: [{step: 'z_score'}]}")
    plan = planned("preprocessing.0.nonzero=true", overrides=overrides)
    assert [step.step for step in plan.preprocessing] == ["z_score"]


def test_every_layer_is_named_in_an_error(references: Path, tmp_path: Path) -> None:
    references.write_text("{}")
    overrides = tmp_path / "o.json5"
    overrides.write_text("{sampling: {patch_size: [8, 8, 8]}}")
    with pytest.raises(PlanError) as caught:
        planned("inference.overlap=[8,4,4]", overrides=overrides)
    layers = "the rules + reference plan Task001_Tiny.json5 + overrides o.json5 + --set: "
    assert str(caught.value).startswith(layers)


def test_another_planner_and_more_memory() -> None:
    assert planned(planner="resenc_m").network.residual
    assert planned(memory_gb=0.2).sampling.patch_size < planned().sampling.patch_size
    with pytest.raises(PlanError, match="'huge'"):
        planned(planner="huge")


# --- with a time budget ---


def test_a_short_budget_changes_recipe_and_length() -> None:
    plan = timed()
    assert isinstance(plan.training.optimizer, Adam)
    assert isinstance(plan.training.schedule, Cosine)
    assert plan.training.seconds == 300
    assert plan.measured["seconds"] == 300
    assert plan.measured["tried"][-1]["device"] == "fake"
    assert plan.provenance["training.epochs"].source == "time budget of 5 min 00 s"
    assert plan.provenance["training.epochs"].rule_value == 1000


def test_the_same_figures_give_the_same_plan() -> None:
    assert to_json(timed().to_json()) == to_json(timed().to_json())


def test_a_long_budget_keeps_the_rules_recipe() -> None:
    plan = timed(seconds=24 * 3600)
    assert plan.training.optimizer == Sgd()
    assert plan.augmentation == planned().augmentation
    assert plan.training.seconds == 24 * 3600


def test_the_budget_overrides_the_reference(references: Path) -> None:
    references.write_text("{training: {epochs: 999, optimizer: {optimizer: 'sgd'}}}")
    plan = timed()
    assert plan.training.epochs != 999
    assert isinstance(plan.training.optimizer, Sgd)  # the published recipe, in less time


def test_the_users_values_override_the_budget(tmp_path: Path) -> None:
    overrides = tmp_path / "o.json5"
    overrides.write_text("{sampling: {batch_size: 4}}")
    plan = timed("training.steps_per_epoch=7", "network.features.0=24", overrides=overrides)
    assert plan.sampling.batch_size == 4
    assert plan.training.steps_per_epoch == 7
    assert plan.network.features[0] == 24
    (tried,) = plan.measured["tried"]  # only one choice remains and is measured once
    assert (tried["features"], tried["batch_size"]) == (list(plan.network.features), 4)
    assert tried["step_seconds"] == pytest.approx(24 * 4 / 500)


def test_settings_of_list_entries_see_the_recipe_of_the_budget() -> None:
    plan = timed("augmentation.6.gamma=[0.9,1.1]")
    transforms = [entry.transform for entry in plan.augmentation]
    assert transforms == [entry.transform for entry in timed().augmentation]
    assert plan.augmentation[6].model_dump()["gamma"] == (0.9, 1.1)


def test_a_budget_that_leaves_no_time() -> None:
    with pytest.raises(PlanError, match=r"\b20 s\b.*\b2 min 36 s\b"):
        compose(
            fingerprint(),
            PlanOptions(seconds=20),
            lambda plan: Overhead(6, 10),
            lambda plan: Timing(1.0, 1.0, 5.0, "fake"),
        )


def test_slices_are_timed_too() -> None:
    plan = timed(configuration="2d")
    assert plan.sampling.patch_size[2] == 1
    assert plan.target_spacing_mm == (1.0, 1.0, None)
    assert plan.training.seconds == 300


# --- configurations, regions, skipped cases ---

LARGE = fingerprint(shape=(512, 512, 200), spacing_mm=(0.8, 0.8, 1.5))


def large(configuration: str | None, **options: Any) -> Plan:
    return compose(LARGE, PlanOptions(configuration=configuration, **options))


@pytest.mark.parametrize(
    ("configuration", "name"),
    [
        (None, "default"),
        ("3d_fullres", "default"),
        ("2d", "default-2d"),
        ("3d_lowres", "default-3d_lowres"),
        ("3d_cascade_fullres", "default-3d_cascade_fullres"),
    ],
)
def test_a_configuration_is_a_plan_of_its_own(configuration: str | None, name: str) -> None:
    plan = large(configuration)
    assert plan.name == name
    assert plan.configuration == (configuration or "3d_fullres")
    cascade = configuration == "3d_cascade_fullres"
    assert plan.previous_stage == ("default-3d_lowres" if cascade else None)


def test_the_cascade_refines_the_low_resolution_of_the_same_name() -> None:
    plan = large("3d_cascade_fullres", name="mine")
    assert plan.previous_stage == large("3d_lowres", name="mine").name == "mine-3d_lowres"


def test_the_only_configuration_of_single_slices_keeps_the_name() -> None:
    slices = fingerprint(shape=(64, 64, 1))
    plan = compose(slices, PlanOptions())
    assert (plan.configuration, plan.name) == ("2d", "default")


def test_a_configuration_that_is_not_useful() -> None:
    with pytest.raises(
        PlanError,
        match=r"'3d_lowres'.* 40 x 56 x 48 .*: 3d_fullres, 2d$",
    ):
        planned(configuration="3d_lowres")


def test_the_other_configurations_are_described() -> None:
    assert other_configurations(LARGE, PlanOptions(), large(None)) == [
        "2d (0.8 x 0.8 mm, patches of 512 x 512, batch 12)",
        "3d_lowres (1.44 x 1.44 x 2.71 mm, patches of 192 x 192 x 64, batch 2)",
        "3d_cascade_fullres (refines 3d_lowres, which is trained first)",
    ]


@pytest.mark.parametrize(
    ("key", "owner"),
    [
        ("configuration=2d", "--config"),
        ("previous_stage=a", "--config"),
        ("skipped_cases=[]", "--skip-bad-cases"),
    ],
)
def test_keys_with_their_own_option_cannot_be_set(key: str, owner: str) -> None:
    with pytest.raises(PlanError, match=f"^--set: {key.partition('=')[0]} .*{owner}"):
        planned(key)


REGIONS = {"background": (0,), "whole": (1, 2), "core": (2,)}


def test_declared_codes_are_kept() -> None:
    code = SegmentCode(type=("10200004", "SCT", "Liver"))
    data = fingerprint()
    name = list(data.labels)[1]
    plan = compose(data, PlanOptions(codes={name: code}))
    assert plan.codes == {name: code}
    assert plan.provenance["codes"].source == "rule: as declared"
    assert plan.id == compose(data, PlanOptions()).id


def test_overlapping_regions_are_kept() -> None:
    data = fingerprint(labels=REGIONS)
    plan = compose(data, PlanOptions(regions_class_order=(1, 2)))
    assert (plan.labels, plan.regions_class_order) == (REGIONS, (1, 2))
    options = PlanOptions(regions_class_order=(1, 2), seconds=99)
    timing = Timing(0.1, 0.01, 0.1, "fake")
    timed = compose(data, options, lambda plan: Overhead(6, 10), lambda plan: timing)
    assert timed.classes.are_regions


def test_a_cascade_is_not_timed() -> None:
    with pytest.raises(PlanError, match=r"--time-budget.*default-3d_lowres"):
        large("3d_cascade_fullres", seconds=99)


def test_overlap_needs_regions_class_order() -> None:
    with pytest.raises(PlanError, match=r"'whole'.*'core'.*\b2\b.*regions_class_order"):
        compose(fingerprint(labels=REGIONS), PlanOptions())


def test_skipped_cases_are_recorded() -> None:
    plan = planned(skipped_cases=("case_1", "case_4"))
    assert plan.skipped_cases == ("case_1", "case_4")
    assert plan.provenance["skipped_cases"].source == "rule: bad cases are left out"
    assert plan.id != planned().id


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("target_spacing_mm=[1,0,1]", r"--set: target_spacing_mm\.1 is 0"),
        ("target_spacing_mm.2=-1", r"target_spacing_mm\.2 is -1"),
        ("preprocessing.1.window=[250,-1250]", r"window: \[250\.0, -1250\.0\]"),
        ("sampling.patch_size=[40,56,50]", r"sampling\.patch_size is 50 along z.* 48 or 56"),
        ("network.feature=[1]", r"'network\.feature'.*'features'"),
    ],
)
def test_invalid_settings(setting: str, match: str) -> None:
    with pytest.raises(PlanError, match=match):
        planned(setting)


def stored_as(*codes: str) -> Fingerprint:
    """Cases that are all the same when their axes are turned to LPS."""
    one = fingerprint(shape=(40, 56, 20), spacing_mm=(1.0, 1.5, 3.0))
    case = one.cases["case_0"]
    return replace(one, cases={f"case_{i}": case.turned_to(code) for i, code in enumerate(codes)})


def test_a_plan_has_the_orientation_of_most_cases() -> None:
    usual = compose(stored_as("LPS", "LPS", "LPS"), PlanOptions())
    mixed = compose(stored_as("PIR", "LPS", "LPS"), PlanOptions())
    assert usual.orientation == "LPS"
    assert mixed.id == usual.id
    assert mixed.provenance["orientation"].source == "rule: as most cases are stored"
    assert mixed.provenance["orientation"].evidence == "2 LPS, 1 PIR"
    other = compose(stored_as("PIR", "PIR", "LPS"), PlanOptions())
    assert other.orientation == "PIR"
    assert other.target_spacing_mm == (1.5, 3.0, 1.0)
    assert other.sampling.patch_size[1] == usual.sampling.patch_size[2]


def test_sizes_mean_the_axes_that_the_user_sets(references: Path, tmp_path: Path) -> None:
    stored = stored_as("LPS", "LPS", "LPS")
    plan = compose(stored, PlanOptions(settings=("orientation=SLA",)))
    assert (plan.orientation, plan.target_spacing_mm) == ("SLA", (3.0, 1.0, 1.5))
    assert plan.provenance["orientation"].rule_value == "LPS"
    assert expected_overhead(stored, plan) == expected_overhead(stored_as(*["SLA"] * 3), plan)
    references.write_text('{orientation: "AIL"}')
    assert compose(stored, PlanOptions()).target_spacing_mm == (1.5, 3.0, 1.0)
    (tmp_path / "own.json5").write_text("{orientation: null}")
    unturned = compose(
        stored_as("LPS", "PIR", "PIR"), PlanOptions(overrides=tmp_path / "own.json5")
    )
    assert unturned.orientation is None
    assert unturned.target_spacing_mm == (1.5, 3.0, 1.0)
    with pytest.raises(PlanError, match="'RAX' is not an orientation"):
        compose(stored, PlanOptions(settings=("orientation=RAX",)))


SIDED = {"background": (0,), "lung_left": (2,), "lung_right": (1,), "infection": (3,)}


def test_labels_of_left_and_right_are_exchanged_by_a_rule_of_our_own() -> None:
    data = fingerprint(labels=SIDED)
    plan = compose(data, PlanOptions())
    assert plan.mirrored_labels == ((2, 1),)
    assert plan.provenance["mirrored_labels"].source.startswith("rule: our own")
    assert "lung_left" in plan.provenance["mirrored_labels"].evidence
    assert planned().mirrored_labels == ()
    declared = compose(data, PlanOptions(mirrored_labels={"infection": "lung_left"}))
    assert declared.mirrored_labels == ((3, 2),)
    assert compose(data, PlanOptions(mirrored_labels={})).mirrored_labels == ()
    unset = compose(data, PlanOptions(settings=("mirrored_labels=[]",)))
    assert unset.mirrored_labels == ()


def test_without_orientation_nothing_is_exchanged() -> None:
    plan = compose(fingerprint(labels=SIDED), PlanOptions(settings=("orientation=null",)))
    assert plan.mirrored_labels == ()
    assert "orientation" in plan.provenance["mirrored_labels"].evidence


def test_the_papers_plan_exchanges_nothing() -> None:
    data = fingerprint(task="Task001_COVID", labels=SIDED)
    assert compose(data, PlanOptions()).mirrored_labels == ()
