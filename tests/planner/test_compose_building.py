"""For any data, the network of the rules' plan can be built and trained for a step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.fingerprint import Fingerprint
from autoseg.networks.unet import build_network
from autoseg.plan.plan import Plan, make_plan
from autoseg.planner.compose import PlanOptions, compose
from autoseg.training.learner import Learner
from autoseg.training.losses import build_loss
from tests.planner.making import fingerprint

MOST_VOXELS = 20_000
PLANNERS = ("default", "resenc_m", "resenc_l", "resenc_xl")


@st.composite
def fingerprints(draw: st.DrawFn) -> Fingerprint:
    """1 to 4 channels, 1 to 60 classes, 1 to 5 cases of any size and spacing."""
    count = draw(st.integers(1, 60))
    labels = {"background": (0,)} | {f"organ {value}": (value,) for value in range(1, count + 1)}
    channels = draw(
        st.lists(st.sampled_from(["CT", "MR", "PET", "noNorm"]), min_size=1, max_size=4)
    )
    data = fingerprint(channels=channels, labels=labels, cases=draw(st.integers(1, 5)))
    cases = {}
    for name, case in data.cases.items():
        shape = draw(st.tuples(*[st.integers(8, 1000)] * 3))
        spacing = draw(st.tuples(*[st.floats(0.1, 12)] * 3))
        cases[name] = replace(case, shape=shape, shape_after_crop=shape, spacing_mm=spacing)
    return replace(data, cases=cases)


def small(plan: Plan) -> Plan:
    """The plan with few feature maps and, if its patch is large, the smallest possible patch."""
    values = plan.model_dump(mode="json")
    values["network"]["features"] = [2 + min(2, n) for n in range(len(plan.network.features))]
    x, y, z = plan.sampling.patch_size
    if x * y * z > MOST_VOXELS:
        rx, ry, rz = plan.network.reduction
        # Twice along one axis: instance normalisation needs more than one voxel at the bottom.
        values["sampling"]["patch_size"] = [rx, ry, 2 * rz] if rz * 2 <= z else [2 * rx, ry, rz]
        values["inference"]["overlap"] = [0, 0, 0]
    values["sampling"]["batch_size"] = 2
    return make_plan(values, "the small plan")


def batch_of(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (plan.sampling.batch_size, *plan.sampling.patch_size)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(shape[0], len(plan.channels), *shape[1:], generator=generator)
    label = torch.randint(0, len(plan.labels), shape, generator=generator)
    return image, label.short()


@given(fingerprints(), st.sampled_from(PLANNERS), st.sampled_from([None, "2d"]))
@settings(deadline=None, max_examples=15)
def test_any_data_give_a_plan_that_can_learn(
    data: Fingerprint, planner: str, configuration: str | None
) -> None:
    plan = compose(data, PlanOptions(planner=planner, configuration=configuration))
    tiny = small(plan)
    network = build_network(tiny).train()
    image, label = batch_of(tiny)
    loss, _ = build_loss(tiny)(network(image), label)
    loss.backward()
    assert torch.isfinite(loss)
    # Outputs of deep supervision that the loss ignores have no gradient.
    learnt = [p.grad for p in network.encoder.parameters()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in learnt)


@pytest.mark.parametrize("planner", PLANNERS[1:])
def test_a_residual_plan_learns_a_step(planner: str) -> None:
    plan = compose(fingerprint(), PlanOptions(planner=planner))
    assert plan.network.residual
    assert plan.network.blocks_encoder[:4] == (1, 3, 4, 6)
    tiny = small(plan)
    learner = Learner(tiny, torch.device("cpu"))
    before = [p.detach().clone() for p in learner.network.encoder.parameters()]
    image, label = batch_of(tiny)
    loss, _ = learner.step({"data": image.numpy(), "label": label.numpy()}, 1e-2)
    assert torch.isfinite(loss)
    after = learner.network.encoder.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_more_memory_gives_a_larger_patch() -> None:
    data = fingerprint(shape=(512, 512, 300))

    def voxels(memory_gb: float) -> int:
        plan = compose(data, PlanOptions(memory_gb=memory_gb))
        x, y, z = plan.sampling.patch_size
        return x * y * z

    assert voxels(4) < voxels(8) < voxels(24)
