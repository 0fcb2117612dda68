import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoseg.training.learner import Learner, averaged, build_optimizer, dice_of
from tests.making import tiny_plan

CPU = torch.device("cpu")


def learner(**training):
    network = {"norm": "batch"}
    return Learner(tiny_plan(training={"precision": "float32"} | training, network=network), CPU)


def batch(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, (2, 8, 8, 8)).astype(np.int16)
    image = scale * (label[:, None] + rng.normal(0, 0.3, (2, 1, 8, 8, 8)))
    return {"data": image.astype(np.float32), "label": label}


def copied(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_a_step_changes_every_weight_and_lowers_the_loss():
    pupil = learner(optimizer={"optimizer": "adam"})
    before = copied(pupil.network)
    first, dice = pupil.step(batch(), 1e-2)
    assert dice.shape == (3,)
    assert not first.requires_grad
    after = pupil.network.state_dict()
    assert all(not torch.equal(after[n], before[n]) for n in before if n.endswith("weight"))
    for _ in range(20):
        last, _ = pupil.step(batch(), 1e-2)
    assert last < first


def test_the_same_seed_gives_the_same_weights():
    one, other = learner(), learner()
    for pupil in (one, other):
        torch.manual_seed(99)
        for seed in range(3):
            pupil.step(batch(seed), 1e-2)
    for name, tensor in one.network.state_dict().items():
        assert torch.equal(tensor, other.network.state_dict()[name])
    different = learner(seed=1)
    assert not torch.equal(different.weights()["heads.0.weight"], one.weights()["heads.0.weight"])


def test_the_given_learning_rate_is_the_one_that_counts():
    pupil = learner(optimizer={"optimizer": "sgd", "learning_rate": 1.0}, gradient_clip=None)
    before = copied(pupil.network)
    pupil.step(batch(), 0.0)
    for name, parameter in pupil.network.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("clip", [0.01, None])
def test_gradients_are_clipped_by_their_norm(clip):
    plain = {"optimizer": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    free, clipped = (learner(optimizer=plain, gradient_clip=c) for c in (None, clip))
    start = copied(free.network)
    free.step(batch(), 1.0)
    clipped.step(batch(), 1.0)
    moves = {n: start[n] - p.detach() for n, p in free.network.named_parameters()}
    norm = torch.stack([move.norm() for move in moves.values()]).norm()
    assert norm > 0.01
    share = 1 if clip is None else clip / (norm + 1e-6)
    for name, parameter in clipped.network.named_parameters():
        assert torch.allclose(start[name] - parameter, moves[name] * share, atol=1e-6)


def test_the_average_follows_its_formula():
    linear, norm = nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1)
    network = nn.Sequential(linear, norm)
    decay = 0.5
    average = averaged(network, decay)
    expected = None
    for count in range(8):
        now = np.array([count**2, -count, 3 * count], float)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(now[None, :2]))
        norm.load_state_dict(
            norm.state_dict()
            | {"running_mean": torch.tensor(now[2:]), "num_batches_tracked": torch.tensor(count)}
        )
        average.update_parameters(network)
        keep = min(decay, (1 + count) / (10 + count))
        expected = now if expected is None else keep * expected + (1 - keep) * now
        state = average.module.state_dict()
        found = [*state["0.weight"][0].tolist(), state["1.running_mean"].item()]
        assert found == pytest.approx(expected.tolist(), rel=1e-5)
        assert state["1.num_batches_tracked"] == count


def test_prediction_and_validation_use_the_average():
    pupil = learner(average_decay=0.9)
    for seed in range(3):
        pupil.step(batch(seed), 1e-2)
    name = "heads.0.weight"
    assert torch.equal(pupil.weights()[name], pupil.average.module.state_dict()[name])
    assert not torch.equal(pupil.weights()[name], pupil.network.state_dict()[name])
    loss, _ = pupil.validate(batch(9))
    twin = learner()
    twin.network.load_state_dict(pupil.weights())
    assert twin.validate(batch(9))[0] == loss


def test_validation_changes_nothing():
    pupil = learner()
    pupil.step(batch(), 1e-2)
    before = copied(pupil.network)
    first, counts = pupil.validate(batch(1))
    assert pupil.validate(batch(1))[0] == first
    assert counts.shape == (3, 3)
    assert (counts[0] + counts[2]).sum() == 2 * 8**3  # every voxel is of one class
    for name, tensor in pupil.network.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": {"optimizer": "sgd"}},
        {"optimizer": {"optimizer": "adam"}, "average_decay": 0.9},
        {"optimizer": {"optimizer": "adam", "decoupled": True}, "average_decay": 0.5},
    ],
)
def test_a_restored_learner_continues_to_the_bit(training):
    one, other = learner(**training), learner(**training, seed=1)
    for seed in range(3):
        one.step(batch(seed), 1e-2)
    other.load_tensors({n: t.clone().contiguous() for n, t in one.tensors().items()})
    for seed in range(3, 6):
        assert torch.equal(one.step(batch(seed), 1e-2)[0], other.step(batch(seed), 1e-2)[0])
    found, expected = other.tensors(), one.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_half_precision_keeps_whole_weights():
    pupil = learner(precision="bfloat16")
    loss, _ = pupil.step(batch(), 1e-3)
    assert loss.dtype == torch.float32
    assert {p.dtype for p in pupil.network.parameters()} == {torch.float32}


def test_optimizers_take_the_numbers_of_the_plan():
    network = nn.Linear(1, 1)
    spec = tiny_plan(training={"optimizer": {"optimizer": "sgd", "momentum": 0.0}})
    group = build_optimizer(spec.training.optimizer, network).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0, False)  # torch refuses both together
    numbers = {"betas": [0.8, 0.9], "epsilon": 1e-7, "weight_decay": 0.1}
    for decoupled, kind in ((False, torch.optim.Adam), (True, torch.optim.AdamW)):
        adam = {"optimizer": "adam", "decoupled": decoupled} | numbers
        found = build_optimizer(tiny_plan(training={"optimizer": adam}).training.optimizer, network)
        assert type(found) is kind
        group = found.param_groups[0]
        assert (*group["betas"], group["eps"], group["weight_decay"]) == (0.8, 0.9, 1e-7, 0.1)


counts = st.lists(st.tuples(*[st.integers(0, 10**6)] * 3), min_size=1, max_size=5)


@given(counts)
def test_dice_of_counts(rows):
    found = dice_of(torch.tensor(rows).T)
    for (hits, wrong, missed), dice in zip(rows, found, strict=True):
        if hits + wrong + missed == 0:
            assert dice is None
        else:
            assert dice == pytest.approx(2 * hits / (2 * hits + wrong + missed))
