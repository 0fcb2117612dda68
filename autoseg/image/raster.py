"""Pictures (PNG, TIFF, BMP) as scans and label maps of one plane: columns are x, rows y.

They have no grid: the spacing is 1 x 1 x 1 mm, and x and y run to the right and down.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoseg.common.errors import AutosegError, DataError, RunError
from autoseg.common.progress import counted, note
from autoseg.image.formats import TEXT
from autoseg.image.geometry import Geometry

Deep = Callable[[str], NDArray[Any]]
UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
GRAY, COLOUR = ("1", "L", "I", "F"), ("RGB", "RGBA", "LA", "P", "PA")


def read_picture(path: Path, as_label: bool, read_deep: Deep) -> tuple[NDArray[Any], Geometry]:
    """The channels (channel, x, y, 1) of a picture and its grid.

    Colours are three channels; transparency is left out. The indices of a palette are labels in a
    label map, and stand for colours elsewhere.

    Args:
        path: the file.
        as_label: it is a label map.
        read_deep: reads pixels (row, column, channel) of 16 bits a colour, which Pillow would cut.

    Raises:
        DataError: it is damaged, or has several pages or an unknown kind of pixels.
    """
    with _opened(path) as picture:
        values = _pixels(picture, path, as_label, read_deep)
    if as_label and values.ndim == 3 and (values == values[..., :1]).all():
        note(f"{path}: its equal colour channels are taken as one")
        values = values[..., 0]
    channels = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    if not as_label:
        note(TEXT("no spacing"))
    size = (channels.shape[2], channels.shape[1], 1)
    grid = Geometry(size, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), UPRIGHT)
    return channels.transpose(0, 2, 1)[..., None], grid


def write_picture(path: Path, label: NDArray[np.integer[Any]]) -> None:
    """Write a label map (x, y, 1) as a PNG of 8 or 16 bits."""
    Image.fromarray(np.ascontiguousarray(label[..., 0].T)).save(path, format="PNG")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture of one page; all that Pillow raises for damaged files becomes a DataError."""
    try:
        with Image.open(path) as picture:
            if (pages := getattr(picture, "n_frames", 1)) > 1:
                raise DataError(TEXT("pages", path=path, pages=counted(pages, "page")))
            yield picture
    except (AutosegError, MemoryError, RunError):
        raise
    except Exception as error:  # OSError, SyntaxError, ValueError, DecompressionBombError, ...
        raise DataError(f"{path}: cannot be read ({error}); export it again") from error


def _pixels(picture: Image.Image, path: Path, as_label: bool, read_deep: Deep) -> NDArray[Any]:
    """The pixels (row, column) or (row, column, channel)."""
    mode = picture.mode
    if mode in GRAY or mode.startswith("I;16") or (mode == "P" and as_label):
        values = np.asarray(picture)
        return values.astype(np.uint8) if values.dtype == bool else values
    if mode not in COLOUR:
        raise DataError(f"{path}: pixels of the kind {mode} are not read; write gray or RGB")
    if ";16" in str(getattr(picture, "tile", "")):
        values = read_deep(str(path))
    else:
        values = np.asarray(picture.convert("RGB") if mode in ("P", "PA") else picture)
    if values.shape[-1] in (2, 4):
        note("an alpha channel (transparency) is left out")
        values = values[..., :-1]
    return values[..., 0] if values.shape[-1] == 1 else values
