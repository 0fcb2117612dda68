"""Box plots, bars and curves, checked by the artists of the figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread
from matplotlib.patches import PathPatch, Rectangle

from autoseg.common.figures import save_figure
from autoseg.evaluation.figures.boxes import (
    Groups,
    draw_box_plot,
    draw_grouped_boxes,
)
from autoseg.evaluation.scores import Summary
from tests.evaluation.scores import case, three_cases


def test_box_plot(tmp_path: Path) -> None:
    out = tmp_path / "dice.png"
    save_figure(draw_box_plot(three_cases().dice), out)
    pixels = imread(out)
    assert pixels.shape[0] == 600
    assert pixels[..., :3].std() > 0.05
    undefined = Summary((case("a", x=(0, 0, 0, 8)),))
    save_figure(draw_box_plot(undefined.dice), tmp_path / "dice.svg")
    assert "<svg" in (tmp_path / "dice.svg").read_text(encoding="utf-8")


def test_boxes_have_colours_hatches_dots_and_n() -> None:
    axes = draw_box_plot(three_cases().dice, {"lesion": "#d55e00"}).axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
    assert to_hex(boxes[1].get_facecolor()) == "#d55e00"
    assert boxes[0].get_hatch() != boxes[1].get_hatch()
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "lung\n(n = 3)",
        "lesion\n(n = 2)",
    ]
    dots = [found.get_ydata() for found in axes.lines if found.get_marker() == "o"]
    assert sorted(np.concatenate(dots)) == [0.0, 0.5, 0.6, 0.8, 1.0]


def test_a_panel_a_plan_and_missing_folds() -> None:
    groups: Groups = {"fold 0": {"x": [0.5, None, 0.7], "y": [0.1]}, "fold 1": {"x": [], "y": []}}
    figure = draw_grouped_boxes({"k = 2": groups, "k = 3": {"fold 0": {"x": [0.4]}}, "c": groups})
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["k = 2", "k = 3", "c"]
    assert [text.get_text() for text in shown[0].get_xticklabels()] == [
        "fold 0\n(n = 3)",
        "fold 1\nmissing",
    ]


def test_bars_are_means_of_the_cases_below_their_boxes() -> None:
    cases = [0.6, 0.9, None, 0.7]
    panels: dict[str, Groups] = {"validation": {"k = 2": {"x": cases}, "k = 3": {"x": []}}}
    figure = draw_grouped_boxes(panels, {"x": "#0072b2"}, bars=True)
    axes = figure.axes[0]
    bar, box = axes.patches
    assert isinstance(bar, Rectangle)
    assert bar.get_height() == pytest.approx(2.2 / 3)  # not the median
    assert isinstance(box, PathPatch)
    assert to_hex(bar.get_facecolor()) == to_hex(box.get_facecolor()) == "#0072b2"
    dots = [found.get_ydata() for found in axes.lines if found.get_marker() == "o"]
    assert sorted(np.concatenate(dots)) == [0.6, 0.7, 0.9]
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "k = 2\n(n = 4)",
        "k = 3\nmissing",
    ]


def test_a_test_set_of_fewer_classes_has_its_own_panel() -> None:
    panels = {"validation": {"a": {"x": [0.5], "y": [0.4]}}, "other": {"a": {"y": [0.3]}}}
    left, right = draw_grouped_boxes(panels, bars=True).axes
    bars = [[p for p in axes.patches if isinstance(p, Rectangle)] for axes in (left, right)]
    assert [len(of) for of in bars] == [2, 1]
    assert to_hex(bars[0][1].get_facecolor()) == to_hex(bars[1][0].get_facecolor())


def test_a_legend_of_many_classes_fits_the_figure() -> None:
    names = [f"a rather long name {i}" for i in range(7)]
    figure = draw_grouped_boxes({"plan": {"fold 0": {name: [0.5] for name in names}}})
    figure.draw_without_rendering()
    box, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1
