"""Three stages of work on many items, at the same time and in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Computed = TypeVar("Computed")
Result = TypeVar("Result")


def overlap(
    items: Iterator[Item],
    prepare: Callable[[Item], Prepared],
    compute: Callable[[Prepared], Computed],
    finish: Callable[[Computed], Result],
) -> Iterator[Result]:
    """`finish(compute(prepare(item)))` of each item, in their order.

    While one item is computed in the calling thread, the next one is prepared in a second thread
    and the last one is finished in a third. An item is taken from `items` (in the second thread)
    only when the one before it goes on to be computed: at most three are alive at once, one a
    stage. What a stage raises ends the iteration once the other two stages have ended.
    """
    # Threads are enough, as readers, compressors, numpy and torch let go of the interpreter while
    # they work; processes would have to send whole volumes to each other.
    preparing, finishing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def prepare_next() -> list[Prepared]:
        return [prepare(item) for item in islice(items, 1)]

    try:
        coming = preparing.submit(prepare_next)
        last: Future[Result] | None = None
        while found := coming.result():
            coming = preparing.submit(prepare_next)
            computed = compute(found.pop())
            if last is not None:
                yield last.result()
            last = finishing.submit(finish, computed)
            del computed
        if last is not None:
            yield last.result()
    finally:
        for stage in (preparing, finishing):
            stage.shutdown(cancel_futures=True)
