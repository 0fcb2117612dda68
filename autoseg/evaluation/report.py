"""The files that an evaluation leaves: tables, a figure, and one HTML page with everything."""

from __future__ import annotations

import base64
import io
import mimetypes
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from autoseg.evaluation.figures import DOTS_PER_INCH, box_plot, draw_box_plot
from autoseg.evaluation.summary import Summary
from autoseg.evaluation.tables import Row, as_csv, dice_rows, metric_rows, rows_as_markdown
from autoseg.files import write_text

Tables = Mapping[str, Sequence[Row]]
NO_TABLES: Tables = {}


def write_tables(folder: Path, summary: Summary, tables: Tables = NO_TABLES) -> list[Path]:
    """Write summary.json, table.md, table.csv and dice.png into `folder`.

    Args:
        folder: made if it isn't there.
        summary: the scores.
        tables: further tables for table.md, heading -> rows, put first.

    Returns:
        The paths of the four files.
    """
    paths = [folder / name for name in ("summary.json", "table.md", "table.csv", "dice.png")]
    summary.save(paths[0])
    sections = _all_tables(summary, tables).items()
    write_text(paths[1], "\n".join(f"## {h}\n\n{rows_as_markdown(rows)}" for h, rows in sections))
    write_text(paths[2], as_csv(summary))
    box_plot(summary, paths[3])
    return paths


def write_report(
    out: Path,
    title: str,
    summary: Summary,
    pictures: Sequence[Path],
    facts: Mapping[str, str],
    tables: Tables = NO_TABLES,
) -> None:
    """Write one self-contained HTML page: facts, tables, box plot and pictures.

    Args:
        out: the `.html` file.
        title: heading of the page.
        summary: the scores.
        pictures: PNG or SVG files, drawn into the page in this order: worst cases first.
        facts: name -> value, listed on top.
        tables: further tables, heading -> rows (the first is the header), put first.
    """
    from jinja2 import Environment, StrictUndefined

    template = files("autoseg.evaluation").joinpath("report.html.j2").read_text("utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(template)
    text = page.render(
        title=title,
        facts=facts,
        tables=_all_tables(summary, tables),
        box_plot=_box_plot_data(summary),
        pictures=[{"name": path.stem, "data": _picture_data(path)} for path in pictures],
    )
    write_text(out, text)


def _all_tables(summary: Summary, tables: Tables) -> dict[str, Sequence[Row]]:
    own = {"Mean of every metric": metric_rows(summary), "Dice": dice_rows(summary)}
    return {**tables, **own}


def _box_plot_data(summary: Summary) -> str:
    drawn = io.BytesIO()
    draw_box_plot(summary).savefig(drawn, format="png", dpi=DOTS_PER_INCH)
    return _data_uri(drawn.getvalue(), "image/png")


def _picture_data(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0]
    assert kind in ("image/png", "image/svg+xml"), path
    return _data_uri(path.read_bytes(), kind)


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
