"""Figures within the report's page: as SVG on no background, or as PNG where that is too large."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoseg.evaluation.figures import DOTS_PER_INCH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_SVG = 150_000  # bytes; thousands of points make more
PIXELS_PER_INCH = 96  # of a web page


@dataclass(frozen=True)
class Chart:
    """A figure in the page.

    Attributes:
        title: stands above.
        alt: what is to see, for those who cannot.
        data: the picture as a data URI.
        width: in the page's pixels.
        note: a sentence below.
    """

    title: str
    alt: str
    data: str
    width: int
    note: str = ""


def chart(figure: Figure, title: str, alt: str, note: str = "") -> Chart:
    """Put a figure into the page; the same figure gives the same bytes."""
    content, kind = _drawn(figure, "svg", {"Date": None}), "svg+xml"
    if len(content) > LARGEST_SVG:
        content, kind = _drawn(figure, "png", {"Software": None}), "png"
    width = round(figure.get_figwidth() * PIXELS_PER_INCH)
    return Chart(title, alt, picture_uri(kind, content), width, note)


def picture_uri(kind: str, content: bytes) -> str:
    """A picture (`png`, `webp`, `svg+xml`) as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _drawn(figure: Figure, form: str, metadata: dict[str, Any]) -> bytes:
    from matplotlib import rc_context

    held = io.BytesIO()
    with rc_context({"svg.hashsalt": "autoseg"}):
        figure.savefig(held, format=form, dpi=DOTS_PER_INCH, metadata=metadata, transparent=True)
    return held.getvalue()
