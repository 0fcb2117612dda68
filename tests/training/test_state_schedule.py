import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.plan.sections import Cosine, Plateau, Polynomial, Schedule
from autoseg.training.state import PlateauState, learning_rate_factor
from autoseg.training.train import epochs_within


@pytest.mark.parametrize(
    ("progress", "factor"), [(0, 1), (0.5, 0.5**0.9), (0.75, 0.25**0.9), (1, 0)]
)
def test_polynomial(progress, factor):
    assert learning_rate_factor(Polynomial(exponent=0.9), progress) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("progress", "factor"),
    [
        (0, 0.01),  # never nothing
        (0.0005, 0.01),
        (0.05, 0.5),
        (0.1, 1),
        (0.4, 0.75),
        (0.55, 0.5),
        (1, 0),
    ],
)
def test_cosine(progress, factor):
    assert learning_rate_factor(Cosine(warmup=0.1), progress) == pytest.approx(factor)


def test_cosine_without_warmup():
    assert learning_rate_factor(Cosine(warmup=0), 0) == 1
    assert learning_rate_factor(Cosine(warmup=0), 1) == pytest.approx(0)


def test_a_plateau_does_not_depend_on_progress():
    assert learning_rate_factor(Plateau(), 0.9) == 1


@given(st.floats(0, 1), st.floats(0, 1))
def test_factors_lie_between_0_and_1(progress, warmup):
    specs: list[Schedule] = [Polynomial(), Plateau(), Cosine(warmup=min(warmup, 0.99))]
    for spec in specs:
        assert 0 <= learning_rate_factor(spec, progress) <= 1


class KerasReduceLROnPlateau:
    """Keras' callback, line by line (mode "min")."""

    def __init__(self, lr, factor, patience, min_delta, cooldown, min_lr):
        self.lr, self.factor, self.patience = lr, factor, patience
        self.min_delta, self.cooldown, self.min_lr = min_delta, cooldown, min_lr
        self.cooldown_counter = 0
        self.wait = 0
        self.best = math.inf

    def on_epoch_end(self, current):
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.wait = 0
        if current < self.best - self.min_delta:
            self.best = current
            self.wait = 0
        elif not self.cooldown_counter > 0:
            self.wait += 1
            if self.wait >= self.patience:
                old_lr = self.lr
                if old_lr > self.min_lr:
                    new_lr = old_lr * self.factor
                    new_lr = max(new_lr, self.min_lr)
                    self.lr = new_lr
                    self.cooldown_counter = self.cooldown
                    self.wait = 0


plateaus = st.builds(
    Plateau,
    factor=st.sampled_from([0.1, 0.5]),
    patience_epochs=st.integers(1, 4),
    min_delta=st.sampled_from([0, 0.05, 1e-4]),
    cooldown_epochs=st.integers(0, 3),
    floor=st.sampled_from([0, 1e-5, 3e-4, 1e-2]),
)
losses = st.lists(st.integers(0, 12).map(lambda n: n / 10), max_size=60)


@given(plateaus, losses)
def test_plateau_equals_keras(spec, values):
    state = PlateauState(1e-3)
    keras = KerasReduceLROnPlateau(
        1e-3,
        spec.factor,
        spec.patience_epochs,
        spec.min_delta,
        spec.cooldown_epochs,
        spec.floor,
    )
    for value in values:
        state = state.after_epoch(value, spec)
        keras.on_epoch_end(value)
        assert state.learning_rate == keras.lr
        assert (state.best, state.cooldown) == (keras.best, keras.cooldown_counter)


def test_plateau_by_hand():
    spec = Plateau(factor=0.1, patience_epochs=2, min_delta=0.01, cooldown_epochs=1, floor=1e-5)
    state, rates = PlateauState(1e-3), []
    for loss in [1.0, 0.995, 0.99, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]:
        state = state.after_epoch(loss, spec)
        rates.append(state.learning_rate)
    # 0.995 and 0.99 are no gain; then 0.9 is; each fall waits two epochs, the first one cools down
    assert rates == pytest.approx([1e-3] * 2 + [1e-4] * 3 + [1e-5] * 5)


budgets = st.floats(20, 1e5)
shares = st.floats(0, 1)


@given(budgets, shares, st.floats(1e-3, 1e3), st.floats(0, 30), st.integers(0, 500), st.data())
def test_epochs_within_a_budget(budget, used_share, seconds, reserve, done, data):
    used = used_share * budget
    planned = done + data.draw(st.integers(0, 500))
    epochs = epochs_within(budget, used, seconds, reserve, done, planned)
    end = used + seconds * (planned - done) + reserve
    assert epochs >= done
    if 0.9 * budget <= end <= budget:
        assert epochs == planned
    elif epochs > done:
        assert used + seconds * (epochs - done) + reserve <= budget
        assert used + seconds * (epochs + 1 - done) + reserve > 0.95 * budget


@pytest.mark.parametrize(
    ("planned", "expected"),
    [(95, 95), (100, 100), (90, 90), (89, 96), (101, 96), (1000, 96), (10, 96)],
)
def test_epochs_by_hand(planned, expected):
    assert epochs_within(100, 10, 1, 0, 10, planned) == expected


def test_epochs_never_fall_below_those_that_are_done():
    assert epochs_within(100, 120, 1, 5, 42, 60) == 42
