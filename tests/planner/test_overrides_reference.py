"""The reference plans in `plans/` have the values of the paper."""

from __future__ import annotations

import re
from pathlib import Path

import json5
import pytest

from autoseg.common.errors import PlanError
from autoseg.networks.unet import build_network
from autoseg.plan.plan import Plan
from autoseg.planner import overrides
from autoseg.planner.compose import PlanOptions, compose
from autoseg.planner.overrides import find_reference, plans_folder, reference_names
from tests.making import count_parameters
from tests.planner.making import fingerprint

LABELS = {"background": (0,), "left lung": (1,), "right lung": (2,), "infection": (3,)}


@pytest.fixture(scope="module")
def plan() -> Plan:
    data = fingerprint(
        task="Task001_COVID", labels=LABELS, shape=(512, 512, 200), spacing_mm=(0.8, 0.8, 1.5)
    )
    return compose(data, PlanOptions())


def test_preprocessing(plan: Plan) -> None:
    assert plan.target_spacing_mm == (1.58, 1.58, 2.70)
    assert [step.model_dump() for step in plan.preprocessing] == [
        {"step": "clip", "window": (-1250, 250), "channel": None, "scaled_scans": "keep"},
        {"step": "rescale", "range": (0, 255), "whole_numbers": True, "channel": None},
        {
            "step": "resample",
            "image_order": 3,
            "label_order": 1,
            "label_ties": "nearest",
            "rounding": "down",
            "anisotropy": None,
            "clip": "volume",
        },
        {
            "step": "z_score",
            "mean": None,
            "std": None,
            "nonzero": False,
            "fill_holes": False,
            "channel": None,
        },
    ]


def test_batches(plan: Plan) -> None:
    assert plan.sampling.patch_size == (160, 160, 80)
    assert plan.sampling.batch_size == 2
    assert plan.sampling.foreground_share == 0  # random crops
    assert plan.training.steps_per_epoch == 150


def test_augmentation(plan: Plan) -> None:
    assert [entry.model_dump() for entry in plan.augmentation] == [
        {"transform": "mirror", "axes": (0, 1, 2), "probability": 0.15},
        {
            "transform": "contrast",
            "probability": 0.15,
            "factor": (0.3, 3.0),
            "preserve_range": True,
        },
        {"transform": "brightness", "probability": 0.15, "factor": (0.5, 2)},
        {
            "transform": "gamma",
            "probability": 0.15,
            "gamma": (0.7, 1.5),
            "invert": False,
            "retain_statistics": True,
        },
        {"transform": "gaussian_noise", "probability": 0.15, "variance": (0, 0.05)},
        {
            "transform": "spatial",
            "rotation_probability": 0.15,
            "rotation_degrees": ((-15, 15), (-15, 15), (-15, 15)),
            "scaling_probability": 0.15,
            "scaling": (0.85, 1.25),
            "elastic_probability": 0.15,
            "elastic_alpha": (0, 900),
            "elastic_sigma": (9, 13),
            "image_order": 3,
            "label_order": 0,
            "border": "constant",
        },
    ]


def test_network(plan: Plan) -> None:
    network = plan.network
    assert network.features == (32, 64, 128, 256, 512)
    assert network.strides == ((1, 1, 1), *[(2, 2, 2)] * 4)
    assert network.kernels == ((3, 3, 3),) * 5
    assert (network.blocks_encoder, network.blocks_decoder) == ((2,) * 5, (2,) * 4)
    assert (network.residual, network.down, network.deep_supervision) == (False, "max_pool", False)
    assert (network.norm, network.norm_momentum) == ("batch", 0.01)
    assert (network.activation, network.activation_first) == ("relu", True)
    assert count_parameters(build_network(plan)) == pytest.approx(22.6e6, rel=0.002)


def test_loss_and_optimizer(plan: Plan) -> None:
    training = plan.training
    assert training.loss.model_dump() == {
        "loss": "tversky_cross_entropy",
        "alpha": 0.5,
        "beta": 0.5,
        "smooth": 1e-6,
    }
    optimizer = training.optimizer
    assert (optimizer.optimizer, optimizer.learning_rate) == ("adam", 1e-3)
    assert optimizer.weight_decay == 0
    assert training.gradient_clip is None


def test_schedule(plan: Plan) -> None:
    training = plan.training
    assert training.schedule.model_dump() == {
        "schedule": "plateau",
        "factor": 0.1,
        "patience_epochs": 15,
        "min_delta": 1e-4,
        "cooldown_epochs": 1,
        "floor": 1e-5,
    }
    assert (training.epochs, training.early_stopping_epochs) == (1000, 100)
    assert (training.keep, training.average_decay) == ("best_training_loss", None)
    assert training.augment_validation
    assert training.validation_steps > 0


def test_folds_inference_and_the_share_of_the_infection(plan: Plan) -> None:
    assert plan.splits.folds == 5
    assert plan.sampling.mix_probability == 0
    assert plan.provenance["sampling.mix_probability"].source.startswith("reference plan")
    assert plan.inference.overlap == (80, 80, 40)
    assert (plan.inference.weighting, plan.inference.mirror_axes) == ("uniform", ())
    assert [share.model_dump() for share in plan.shares] == [{"label": 3, "container": (1, 2)}]


def test_values_of_the_paper_are_marked(plan: Plan) -> None:
    assert plan.provenance["sampling.patch_size"].source == "reference plan Task001_COVID.json5"
    assert plan.provenance["training.optimizer.optimizer"].rule_value == "sgd"
    assert plan.labels == LABELS


def test_only_the_exact_name_matches() -> None:
    assert find_reference("Task001_COVID") is not None
    for other in ("Task001", "Task001_COVID2", "task001_covid ", "../plans/Task001_COVID.json5"):
        assert find_reference(other) is None


def test_the_plans_of_a_checkout_or_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (plans_folder() / "Task001_COVID.json5").is_file()
    module = tmp_path / "autoseg" / "planner" / "overrides.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(overrides, "__file__", str(module))
    assert plans_folder() == tmp_path / "plans"
    (tmp_path / "autoseg" / "plans").mkdir()
    assert plans_folder() == tmp_path / "autoseg" / "plans"


# --- variants and names ---

VARIANTS = {
    "Task001_COVID.no_augmentation": {"augmentation"},
    "Task001_COVID.no_preprocessing": {"preprocessing"},
    "Task001_COVID.no_augmentation_no_preprocessing": {"augmentation", "preprocessing"},
}


def variant(name: str) -> Plan:
    data = fingerprint(
        task="Task001_COVID", labels=LABELS, shape=(512, 512, 200), spacing_mm=(0.8, 0.8, 1.5)
    )
    return compose(data, PlanOptions(reference=name))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_differs_from_the_papers_plan_as_its_name_says(name: str, plan: Plan) -> None:
    without = {"provenance", *VARIANTS[name]}
    made = variant(name)
    assert made.model_dump(exclude=without) == plan.model_dump(exclude=without)
    for key in VARIANTS[name]:
        assert getattr(made, key) == ()
        assert made.provenance[key].source.startswith(f"reference plan {name.split('_no_pre')[0]}")
        assert made.provenance[key].rule_value  # the rules would not have left it out
    assert made.provenance["network.features"].source == "reference plan Task001_COVID.json5"
    assert all(key in made.provenance for key in VARIANTS[name])
    assert made.provenance["network.features"].evidence.startswith("journal, section 2.5")


def test_the_plan_as_the_script_runs_it_differs_in_four_values(plan: Plan) -> None:
    made = variant("Task001_COVID.as_script")
    values = plan.model_dump(mode="json", exclude={"provenance"})
    values["preprocessing"][0]["scaled_scans"] = "clip"
    values["augmentation"][0]["probability"] = 1
    values["training"]["augment_validation"] = False
    values["inference"]["overlap"] = [80, 80, 30]
    assert made.model_dump(mode="json", exclude={"provenance"}) == values
    found = {
        key: made.provenance[key].evidence.split(",")[0]
        for key in (
            "preprocessing.0.scaled_scans",
            "augmentation.0.probability",
            "training.augment_validation",
            "inference.overlap",
            "augmentation.5.elastic_alpha",  # inherited, though its list is written anew
        )
    }
    assert list(found.values()) == ["script", "MIScnn", "MIScnn", "script", "MIScnn"]
    assert made.provenance["augmentation"].evidence == plan.provenance["augmentation"].evidence


@pytest.mark.parametrize("name", ["Task001_COVID", "Task001_COVID.as_script", *VARIANTS])
def test_every_value_of_a_reference_plan_has_its_own_source(name: str) -> None:
    made = variant(name)
    published = {k: why for k, why in made.provenance.items() if "reference plan" in why.source}
    used = {why.evidence for why in published.values()}
    file = json5.loads((plans_folder() / f"{name}.json5").read_text(encoding="utf-8"))
    assert set(file["sources"].values()) <= used  # none is for a key that does not exist
    assert len(published) > 50
    for key, why in published.items():
        origin = re.split("[,:]", why.evidence)[0]
        assert origin in {
            "journal",
            "script",
            "MIScnn",
            "batchgenerators",
            "Keras",
            "benchmark",
            "ours",
        }, key
        assert ("10.1016/j.imu.2021.100681" in why.citation) == (origin == "journal"), key
        assert bool(why.citation) == (origin != "ours"), key


# Where the paper, read again, states a value; and values that it does not state.
STATED = {
    "target_spacing_mm": "journal, section 2.2",
    "preprocessing.0": "journal, section 2.2",
    "sampling.patch_size": "journal, section 2.4",
    "sampling.batch_size": "journal, section 2.5",
    "augmentation": "journal, section 2.3",
    "network.norm": "journal, section 2.5",
    "training.loss.loss": "journal, section 2.5",
    "training.schedule.patience_epochs": "journal, section 2.5",
    "training.augment_validation": "journal, section 2.7",
    "splits.folds": "journal, section 2.6",
    "inference.overlap": "journal, section 2.4",
    "evaluation.merged": "journal, section 2.7",
    "training.validation_steps": "ours",
    "training.optimizer.weight_decay": "Keras",
    "training.optimizer.learning_rate": "script, run_miscnn.py",
    "training.schedule.min_delta": "script, run_miscnn.py",
    "augmentation.4.variance": "MIScnn",
    "augmentation.5.elastic_sigma": "MIScnn",
    "evaluation.tolerances": "benchmark",
    "evaluation.colours": "ours",
}


@pytest.mark.parametrize(("key", "source"), STATED.items())
def test_a_value_names_where_it_stands(plan: Plan, key: str, source: str) -> None:
    why = plan.provenance.get(key) or plan.provenance[key.rpartition(".")[0]]
    assert why.evidence.startswith(source)


def test_a_reference_plan_of_another_name_can_be_chosen() -> None:
    options = PlanOptions(reference="Task001_COVID")
    made = compose(fingerprint(labels=LABELS), options)
    assert made.task == "Task001_Tiny"
    assert made.network.features == (32, 64, 128, 256, 512)


def test_an_unknown_name_is_reported_with_the_available_ones() -> None:
    assert set(VARIANTS) < set(reference_names())
    with pytest.raises(PlanError, match=r"'Task002'.*: Task001_COVID, Task"):
        find_reference("Task001_Tiny", "Task002")


def test_a_reference_plan_is_for_one_configuration() -> None:
    options = PlanOptions(configuration="2d", reference="Task001_COVID")
    match = "^--config 2d: .*Task001_COVID .*3d_fullres.*--no-reference"
    with pytest.raises(PlanError, match=match):
        compose(fingerprint(labels=LABELS), options)


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(overrides, "plans_folder", lambda: tmp_path)
    return tmp_path


def test_the_closest_source_counts(plans: Path) -> None:
    (plans / "a.json5").write_text("""{
      inference: {mirror_axes: []},
      network: {norm: 'batch', norm_epsilon: 0.1, norm_momentum: 0.5},
      augmentation: [{transform: 'mirror', axes: [0]}, {transform: 'gamma'}],
      splits: {folds: 3},
      citations: {paper: 'A and B 1999, doi 10.1/2'},
      sources: {
        network: 'paper, section 1', 'network.norm_epsilon': 'ours: a guess',
        augmentation: 'paper: figure 2', 'augmentation.0.axes': 'ours'
      },
    }""")
    (plans / "b.json5").write_text("""{
      extends: 'a', 'augmentation.0.axes': [1], 'network.norm': 'instance',
      citations: {code: 'c.org'}, sources: {'network.norm': 'code, x.py'},
    }""")
    found = compose(fingerprint(), PlanOptions(reference="b")).provenance
    assert {
        key: (why.evidence, why.citation) for key, why in found.items() if "b.j" in why.source
    } == {
        "augmentation": ("paper: figure 2", "A and B 1999, doi 10.1/2"),
        "augmentation.0.axes": ("ours", ""),
        "network.norm": ("code, x.py", "c.org"),
    }
    assert found["network.norm_epsilon"].evidence == "ours: a guess"
    assert found["network.norm_momentum"].citation == "A and B 1999, doi 10.1/2"
    assert (found["splits.folds"].evidence, found["splits.folds"].citation) == ("", "")
    options = PlanOptions(reference="b", settings=("augmentation.1.probability=1",))
    again = compose(fingerprint(), options)
    assert [key for key in again.provenance if key.startswith("augmentation")] == ["augmentation"]
    assert again.provenance["augmentation"].source == "--set"
    assert again.augmentation[0].model_dump()["axes"] == (1,)


def test_a_variant_overrides_what_it_extends(plans: Path) -> None:
    (plans / "a.json5").write_text("{training: {epochs: 3, seed: 3}, configuration: '2d'}")
    (plans / "b.json5").write_text("{extends: 'a', training: {seed: 4}}")
    (plans / "c.json5").write_text("{extends: 'b', splits: {folds: 2}}")
    found = find_reference("Task", "c")
    assert found is not None
    assert [layer.source for layer in found.layers] == [
        f"reference plan {name}.json5" for name in "abc"
    ]
    assert found.configuration == "2d"
    made = compose(fingerprint(), PlanOptions(reference="c"))
    assert (made.training.epochs, made.training.seed, made.splits.folds) == (3, 4, 2)
    assert made.configuration == "2d"


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"a": "{extends: 'a'}"}, "a -> a$"),
        (
            {"a": "{extends: 'b'}", "b": "{extends: 'c'}", "c": "{extends: 'b'}"},
            "a -> b -> c -> b$",
        ),
        ({"a": "{extends: 'gone'}"}, r"'gone', .*\ba extends, .*: a$"),
        ({"a": "{extends: 3}"}, r"a\.json5: extends is 3"),
        ({"a": "{extends: '../a'}"}, r"'\.\./a'"),
        ({"a": "{splits: {folds: 3}, sources: {splits: 'Nature, 3'}}"}, "Nature, 3.*ours"),
        ({"a": "{citations: {paper: 3}}"}, r"a\.json5: citations\.paper is 3"),
        (
            {"a": "{extends: 'b', 'augmentation.0.axes': 3}", "b": "{augmentation: []}"},
            "augmentation.0",
        ),
    ],
)
def test_invalid_extends(plans: Path, files: dict[str, str], match: str) -> None:
    for name, text in files.items():
        (plans / f"{name}.json5").write_text(text)
    with pytest.raises(PlanError, match=match):
        find_reference("Task", "a")
