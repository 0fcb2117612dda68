"""The notebook of the documentation runs, and shows what it should; and what objects show."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from autoseg.evaluation.scores import Summary
from autoseg.fingerprint import Fingerprint
from autoseg.image.image import from_array
from autoseg.planner.explain import rows
from autoseg.prediction.output import Prediction
from tests.cli.making import UNSEEN, copy_hippocampus
from tests.dataset.making import HIPPOCAMPUS
from tests.evaluation.scores import case
from tests.making import tiny_plan
from tests.planner.making import fingerprint

NOTEBOOK = Path(__file__).parents[1] / "docs" / "example.ipynb"
SHOWN = ("Plan default of Task004", "Fingerprint of Task004", "Mean ± standard", "three planes")


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    task = tmp_path / HIPPOCAMPUS.name
    copy_hippocampus(task, 4, UNSEEN)
    monkeypatch.setenv("AUTOSEG_EXAMPLE_TASK", os.fspath(task))
    monkeypatch.setenv("PYTHONPATH", os.fspath(NOTEBOOK.parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": os.fspath(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=250, resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.get("data", {}).get("text/html", "") for output in outputs]
    for words in SHOWN:
        assert any(words in page for page in shown), words
    printed = "".join(output.get("text", "") for output in outputs)
    (report,) = [line for line in printed.splitlines() if line.startswith("report: ")]
    assert Path(report.removeprefix("report: ")).is_file()


def test_the_notebook_was_executed_as_it_is() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert NOTEBOOK.stat().st_size < 1_000_000


def test_a_plan_shows_every_value_with_its_source() -> None:
    plan = tiny_plan(network={"features": [2, 4]})
    page = plan._repr_html_()
    assert f"id {plan.id}" in page
    for row in rows(plan):
        assert f"<td>{row.key}" in page
    assert "<td>[2, 4]</td>" in page


def test_a_fingerprint_shows_figures_and_escapes_names() -> None:
    found: Fingerprint = fingerprint()
    page = found._repr_html_()
    assert f"<td>{len(found.cases)}</td>" in page
    for name in found.labels:
        assert f"label {name}" in page


def test_scores_show_a_table_and_a_box_for_each_class() -> None:
    summary = Summary(
        (case("a", x=(8, 2, 2, 1)), case("b", x=(9, 1, 1, 1)), case("c", x=(0, 0, 0, 9)))
    )
    page = summary._repr_html_()
    assert page.count("<circle") == 2  # Dice of c is undefined
    assert page.count("<rect") == 1
    assert "0.850 ± 0.071" in page
    low = page.split('<rect x="')[1].split('"')[0]
    assert float(low) == pytest.approx(10 + 300 * np.quantile([0.8, 0.9], 0.25))
    assert "<svg" in Summary((case("<b>", x=(1, 0, 0, 1)),))._repr_html_()


def test_a_prediction_shows_three_planes() -> None:
    scan = from_array(np.mgrid[:9, :8, :7][0].astype(np.float32), (1, 1, 1))
    label = np.zeros((9, 8, 7), np.uint8)
    label[2:5, 2:5, 2:5] = 1
    page = Prediction(scan, label, tiny_plan())._repr_html_()
    assert page.startswith('<img alt="three planes" src="data:image/png;base64,')
