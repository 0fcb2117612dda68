"""Probabilities as a file: float16, compressed, written some planes at a time.

The file is one Blosc2 array (class, x, y, z) on the scan's own grid; its classes are in the order
of the plan's labels, without the background where they are regions. Slicing it reads no more than
is needed:

    import blosc2
    probabilities = blosc2.open("case.probabilities.b2nd", mode="r")
    tumour = probabilities[2]  # a NumPy array (x, y, z)
    names = probabilities.vlmeta["classes"]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Triple
from autoseg.common.files import cannot_write, replacing
from autoseg.prediction.native_grid import PLANES_AT_ONCE

ENDING = ".probabilities.b2nd"


class ProbabilityFile:
    """An array (class, x, y, z) on disk that is filled by planes across one axis.

    Args:
        path: for messages.
        array: the open Blosc2 array.
        axis: 0, 1 or 2: what `write` calls x is that axis of the file, and the other way round.
    """

    def __init__(self, path: Path, array: Any, axis: int) -> None:
        self.path, self.array, self.axis = path, array, axis

    def write(self, index: int, rows: slice, shares: NDArray[np.float32]) -> None:
        """Fill some planes of a class.

        Raises:
            AutosegError: the disk is full.
        """
        where: list[Any] = [index, slice(None), slice(None), slice(None)]
        where[1 + self.axis] = rows
        turned = shares.astype(np.float16).swapaxes(0, self.axis)
        with _told(self.path):
            self.array[tuple(where)] = np.ascontiguousarray(turned)


@contextmanager
def probability_file(
    path: Path, names: Sequence[str], size: Triple, axis: int = 0
) -> Iterator[ProbabilityFile]:
    """A file to fill within the block; it appears when the block ends, whole or not at all.

    Args:
        path: the file.
        names: of the classes.
        size: voxels along x, y, z.
        axis: across which planes are written, `PLANES_AT_ONCE` at a time.

    Raises:
        AutosegError: it cannot be written.
    """
    import blosc2

    chunk = list(size)
    chunk[axis] = min(PLANES_AT_ONCE, size[axis])  # so that each chunk is compressed once
    with replacing(path) as temporary:
        with _told(path):
            array = blosc2.zeros(
                (len(names), *size),
                dtype=np.float16,
                urlpath=str(temporary),
                mode="w",
                chunks=(1, *chunk),
                cparams={"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1},
            )
            array.vlmeta["classes"] = list(names)
        yield ProbabilityFile(path, array, axis)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Blosc2 raises RuntimeErrors: say which file, and what to do."""
    try:
        yield
    except RuntimeError as error:
        raise cannot_write(path, error) from error
