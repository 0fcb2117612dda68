from __future__ import annotations

import csv
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.common.errors import PlanError
from autoseg.fingerprint import Fingerprint
from autoseg.planner import overrides
from autoseg.planner.compose import PlanOptions, compose
from autoseg.planner.explain import rows
from autoseg.planner.overrides import plans_folder
from autoseg.planner.patch_rule import (
    SOURCE,
    USABLE_SHARE,
    largest_patch,
    median_grid,
    training_memory,
)
from tests.making import tiny_plan
from tests.planner.making import fingerprint

HEADERS = Path(__file__).parents[1] / "data" / "covid20_headers.csv"
LABELS = {"background": (0,), "left lung": (1,), "right lung": (2,), "infection": (3,)}
PATCH = "    patch_size: [160, 160, 80],\n"
NETWORK = (
    "network={features: [8, 16], strides: [[1, 1, 1], [2, 2, 2]], kernels: [[3, 3, 3], [3, 3, 3]],"
    " blocks_encoder: [2, 2], blocks_decoder: [2]}"
)


def covid() -> Fingerprint:
    """The 20 scans of Ma et al. 2020, with their real headers."""
    with HEADERS.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    data = fingerprint(task="Task001_COVID", labels=LABELS, cases=1)
    (case,) = data.cases.values()
    cases = {}
    for line in lines:
        x, y, z = (int(line[f"size_{axis}"]) for axis in "xyz")
        dx, dy, dz = (float(line[f"spacing_{axis}_mm"]) for axis in "xyz")
        cases[line["case"]] = replace(
            case, shape=(x, y, z), shape_after_crop=(x, y, z), spacing_mm=(dx, dy, dz)
        )
    return replace(data, cases=cases)


@pytest.fixture
def without_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's plan without its patch, which the rule has to find."""
    text = (plans_folder() / "Task001_COVID.json5").read_text(encoding="utf-8")
    assert text.count(PATCH) == 1
    (tmp_path / "Task001_COVID.json5").write_text(text.replace(PATCH, ""), encoding="utf-8")
    monkeypatch.setattr(overrides, "plans_folder", lambda: tmp_path)


@pytest.mark.usefixtures("without_patch")
def test_the_rule_reproduces_the_papers_patch() -> None:
    options = PlanOptions(memory_gb=24, settings=("training.precision='float32'",))
    plan = compose(covid(), options)
    spacing, shape = median_grid(plan, covid())
    assert (spacing, shape) == ((1.58, 1.58, 2.70), (267, 254, 103.5))
    assert plan.sampling.patch_size == (160, 160, 80)
    assert plan.inference.overlap == (80, 80, 40)
    why = plan.provenance["sampling.patch_size"]
    assert why.source == SOURCE
    assert "267 x 254 x 103.5 at 1.58 x 1.58 x 2.7 mm" in why.evidence
    assert "a batch of 2 takes 10.7 GB" in why.evidence


@pytest.mark.usefixtures("without_patch")
@pytest.mark.parametrize(
    ("memory_gb", "patch"),
    [(11, (112, 112, 64)), (16, (128, 128, 80)), (32, (176, 176, 96)), (1000, (256, 240, 96))],
)
def test_other_cards(memory_gb: float, patch: tuple[int, int, int]) -> None:
    options = PlanOptions(memory_gb=memory_gb, settings=("training.precision='float32'",))
    assert compose(covid(), options).sampling.patch_size == patch


def test_our_rules_beside_the_papers_values() -> None:
    data = covid()
    scales = ["hounsfield"] * 10 + ["0..255"] * 10
    cases = dict(data.cases)
    for shift, (name, scale) in enumerate(zip(cases, scales, strict=True)):
        (channel,) = cases[name].channels
        assert channel.foreground is not None
        inside = replace(channel.foreground, p00_5=-900.0 - shift, p99_5=100.0 - shift)
        channel = replace(channel, scale=scale, foreground=inside)
        cases[name] = replace(cases[name], channels=(channel,))
    plan = compose(replace(data, cases=cases), PlanOptions())
    why = plan.provenance
    # 4 steps of 3 % until x and y are half as coarse as z, 22 until a patch covers a quarter.
    expected = (0.683594 * 1.03**26, 0.683594 * 1.03**26, 1.5 * 1.03**22)
    assert why["target_spacing_mm"].own_rule == pytest.approx(expected, abs=0.006)
    assert why["target_spacing_mm"].rule_value == pytest.approx((0.683594, 0.683594, 1.5))
    assert plan.target_spacing_mm == (1.58, 1.58, 2.7)
    assert why["sampling.patch_size"].own_rule == [160, 160, 80]
    assert why["sampling.patch_size"].rule_value == [192, 192, 56]
    window = why["preprocessing.0.window"]
    assert window.own_rule == [round(-904.5 - 250), round(95.5 + 250)]  # of the first ten cases
    assert window.rule_value == [-958.5, 271]
    assert window.evidence == "journal, section 2.2"
    own = {row.key: row.why for row in rows(plan) if "our rules" in row.why}
    assert list(own) == ["target_spacing_mm", "preprocessing.0", "sampling.patch_size"]
    assert "rules alone: -958.5 to 271; our rules: -1154 to 346" in own["preprocessing.0"]


def test_our_rules_are_those_of_the_memory_that_the_paper_names() -> None:
    patches = {
        memory_gb: compose(covid(), PlanOptions(memory_gb=memory_gb))
        .provenance["sampling.patch_size"]
        .own_rule
        for memory_gb in (None, 24, 11, 0.01)
    }
    assert patches[None] == patches[24] == [160, 160, 80]
    assert prod(patches[11]) < prod(patches[24])
    assert patches[0.01] is None  # no patch fits


def test_bfloat16_gives_a_larger_patch() -> None:
    def side(precision: str) -> int:
        options = PlanOptions(
            settings=(NETWORK, f"training.precision='{precision}'"), memory_gb=0.5
        )
        plan = compose(fingerprint(shape=(300, 300, 300)), options)
        return plan.sampling.patch_size[0]

    assert side("bfloat16") > side("float32")


def test_a_given_patch_or_network_of_the_rules_is_kept() -> None:
    options = PlanOptions(
        settings=(NETWORK, "sampling.patch_size=[8,8,8]", "inference.overlap=[4,4,4]")
    )
    plan = compose(fingerprint(), options)
    assert plan.sampling.patch_size == (8, 8, 8)
    assert compose(fingerprint(), PlanOptions()).sampling.patch_size == (40, 56, 48)


def test_a_given_overlap_is_kept() -> None:
    options = PlanOptions(settings=(NETWORK, "inference.overlap=[2,2,2]"))
    plan = compose(fingerprint(), options)
    assert plan.inference.overlap == (2, 2, 2)
    assert plan.provenance["sampling.patch_size"].source == SOURCE


def test_invalid_strides_are_reported() -> None:
    options = PlanOptions(settings=("network.strides=7",))
    with pytest.raises(PlanError, match=r"network\.strides is 7"):
        compose(fingerprint(), options)


def test_too_little_memory() -> None:
    with pytest.raises(PlanError, match=r"1e-06 GB.*9 x 9 x 9"):
        largest_patch(tiny_plan(), (1, 1, 1), (9, 9, 9), 1e-6)


def test_cases_too_small_for_the_network() -> None:
    """The only patch leaves one voxel, for which instance normalisation is undefined."""
    with pytest.raises(PlanError, match=r"3 x 3 x 3.*stages"):
        largest_patch(tiny_plan(), (1, 1, 1), (3, 3, 3), 1)


sizes = st.tuples(*[st.integers(4, 400)] * 3)
spacings = st.tuples(*[st.floats(0.3, 6)] * 3)


@given(spacings, sizes, st.floats(0.005, 2), st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=100)
def test_the_rule_holds(spacing: Any, shape: Any, memory_gb: float, flat: int) -> None:
    plan = tiny_plan(
        network={"strides": [[1, 1, 1], [2, 2, flat]]}, sampling={"patch_size": [8] * 3}
    )
    patch = largest_patch(plan, spacing, shape, memory_gb)
    assert training_memory(plan, patch).peak <= USABLE_SHARE * memory_gb * 2**30
    factors = plan.network.reduction
    for size, factor, most in zip(patch, factors, shape, strict=True):
        assert size % factor == 0
        assert size <= max(most, factor)
    # Sides are equal in mm: none is longer than any other would be with one more step.
    steps = [factor * mm for factor, mm in zip(factors, spacing, strict=True)]
    counts = [size // factor for size, factor in zip(patch, factors, strict=True)]
    longest = max((n * step for n, step in zip(counts, steps, strict=True) if n > 1), default=0)
    for n, step, factor, most in zip(counts, steps, factors, shape, strict=True):
        assert (n + 1) * factor > most or (n + 1) * step * (1 + 1e-6) > longest
