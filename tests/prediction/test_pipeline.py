from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator

import pytest

from autoseg.prediction.batch import overlap


class Volume:
    """Something large: counts how many are alive at once."""

    alive = 0
    most = 0
    lock = threading.Lock()

    def __init__(self, number: int) -> None:
        self.number = number
        with Volume.lock:
            Volume.alive += 1
            Volume.most = max(Volume.most, Volume.alive)
        weakref.finalize(self, Volume._gone)

    @classmethod
    def _gone(cls) -> None:
        with cls.lock:
            cls.alive -= 1


@pytest.mark.parametrize("count", [0, 1, 2, 3, 30])
def test_every_item_goes_through_all_stages_in_order(count: int) -> None:
    found = overlap(
        iter(range(count)), lambda n: [n], lambda ns: [*ns, "computed"], lambda ns: [*ns, "done"]
    )
    assert list(found) == [[n, "computed", "done"] for n in range(count)]


@pytest.mark.parametrize("slow", ["prepare", "compute", "finish", "nothing"])
def test_at_most_one_item_a_stage_is_alive(slow: str) -> None:
    Volume.most = 0
    begun = itertools.count()

    def stage(name: str, volume: Volume) -> Volume:
        if name == slow:
            # The other stages run ahead as far as they can: they stand still when nothing moves.
            before = -1
            while before != Volume.most:
                before = Volume.most
                threading.Event().wait(0.005)
        return volume

    def prepare(number: int) -> Volume:
        next(begun)
        return stage("prepare", Volume(number))

    def finish(volume: Volume) -> int:
        return stage("finish", volume).number

    assert list(overlap(iter(range(40)), prepare, lambda v: stage("compute", v), finish)) == list(
        range(40)
    )
    assert next(begun) == 40
    assert Volume.most <= 3
    assert Volume.alive == 0


def test_the_three_stages_work_at_the_same_time() -> None:
    """Each waits for the other two: one after the other, none would ever go on."""
    meeting = threading.Barrier(3, timeout=60)

    def meet(number: int) -> int:
        if number in meets:
            meeting.wait()
        return number

    def prepare(number: int) -> int:
        return number if number != 2 else meet(2)

    def compute(number: int) -> int:
        return number if number != 1 else meet(1)

    def finish(number: int) -> int:
        return number if number != 0 else meet(0)

    meets = {0, 1, 2}
    assert list(overlap(iter(range(5)), prepare, compute, finish)) == list(range(5))


@pytest.mark.parametrize("stage", range(4))
def test_an_error_ends_all_stages(stage: int) -> None:
    seen: list[int] = []

    def items() -> Iterator[int]:
        yield from range(10)
        if stage == 3:
            raise OSError("no more")

    def failing(index: int, number: int) -> int:
        if index == stage and number == 5:
            raise KeyError(number)
        return number

    threads = threading.active_count()
    results = overlap(
        items(), lambda n: failing(0, n), lambda n: failing(1, n), lambda n: failing(2, n)
    )
    with pytest.raises((KeyError, OSError)):  # noqa: PT012
        for number in results:
            seen.append(number)
    assert seen == list(range(len(seen)))
    assert len(seen) >= (8 if stage == 3 else 3)
    assert threading.active_count() == threads


def test_a_consumer_that_stops_ends_the_threads() -> None:
    threads = threading.active_count()
    results = overlap(itertools.count(), lambda n: n, lambda n: n, lambda n: n)
    assert next(results) == 0
    assert threading.active_count() == threads + 2
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads


def test_items_are_taken_only_when_they_can_be_worked_on() -> None:
    """What waits unclaimed can be done by another run."""
    taken: list[int] = []
    results = overlap(
        iter(lambda: taken.append(0) or len(taken), None),  # type: ignore[func-returns-value]
        lambda n: n,
        lambda n: n,
        lambda n: n,
    )
    next(results)
    assert len(taken) <= 3
