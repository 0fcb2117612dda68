"""Templates, and web pages that stand alone: one HTML file with its style and pictures inside.

A page's template extends `templates/base.html.j2`, which brings style, tables that sort, and print.
"""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.common.files import write_text
from autoseg.common.progress import by_axis, in_fine_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"
SIZE = "(size of this page)"  # in a template; the size is written in its place
LARGEST_SVG = 150_000  # bytes; a larger figure becomes a PNG
KINDS = {"svg": "svg+xml"}  # of MIME, if not the form's own name
PIXELS_PER_INCH = 96  # of a web page


def write_page(out: Path, template: Path, **content: Any) -> None:
    """Write a page; equal content gives equal bytes.

    Args:
        out: the HTML file.
        template: a template, which may include those of its folder and of `TEMPLATES`.
        content: what the template names; `title` is needed by the base.
    """
    text = fill(template, **content)
    write_text(out, text.replace(SIZE, f"{len(text.encode()) / 1e6:.1f} MB"))


def fill(template: Path, **content: Any) -> str:
    """The text of a template; only that of HTML (`.html.j2`) is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # slow to import

    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True}
    options |= {"autoescape": ".html" in template.suffixes, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader([template.parent, TEMPLATES]), **options)
    environment.globals |= {"library": _library, "words": in_fine_words, "number": _number}
    environment.globals |= {"by_axis": by_axis, "zip": zip}
    return environment.get_template(template.name).render(content)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _library() -> str:
    """NiiVue, the library of the viewer, compressed as text."""
    return base64.b64encode((TEMPLATES / "niivue.umd.js.gz").read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Chart:
    """A figure in a page.

    Attributes:
        title: the heading above it.
        alt: alternative text.
        data: the image as a data URI.
        width: in pixels of the page.
        note: a sentence below it.
    """

    title: str
    alt: str
    data: str
    width: int
    note: str = ""


def chart(figure: "Figure", title: str, alt: str, note: str = "", form: str = "svg") -> Chart:
    """Convert a figure for a page: a transparent SVG, or a PNG if that is too large.

    Args:
        figure: the figure.
        title: the heading above it.
        alt: alternative text.
        note: a sentence below it.
        form: `webp` for a picture of a scan, which is smaller than an SVG.
    """
    from autoseg.common.figures import rendered  # pages without figures need it not

    content = rendered(figure, form, transparent=form == "svg")
    if form == "svg" and len(content) > LARGEST_SVG:
        form, content = "png", rendered(figure, "png", transparent=True)
    width = round(figure.get_figwidth() * PIXELS_PER_INCH)
    return Chart(title, alt, picture_uri(KINDS.get(form, form), content), width, note)


def picture_uri(kind: str, content: bytes) -> str:
    """An image (`png`, `webp`, `svg+xml`) as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
