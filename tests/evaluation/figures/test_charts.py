"""Figures of scores, checked by their artists; and colours, as colour-blind readers see them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

from autoseg.common.figures import COLOURS, DARK_COLOURS, save_figure
from autoseg.evaluation.figures.charts import (
    MOST_PANELS,
    SURFACE,
    Groups,
    draw_groups,
    draw_scores,
    draw_volumes,
)
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.surface import Surface
from autoseg.image.picture import ERROR_COLOURS
from tests.evaluation.scores import case, three_cases
from tests.forking import fine_pictures

__all__ = ["fine_pictures"]


def points(axes: Axes, marker: str = "o") -> list[list[float]]:
    """The values of each row of points."""
    rows = [line.get_xdata() for line in axes.lines if line.get_marker() == marker]
    return [sorted(np.asarray(row, float).tolist()) for row in rows if len(np.asarray(row))]


def names(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


def test_each_case_is_a_point_and_n_stands_beside_the_class(tmp_path: Path) -> None:
    figure = draw_scores(three_cases(), colours={"lesion": "#d55e00"})
    (axes,) = figure.axes
    assert names(axes) == ["lung  n = 3", "lesion  n = 2"]
    assert points(axes) == [[0.6, 0.8, 1.0], [0.0, 0.5]]
    assert "#d55e00" in {to_hex(line.get_color()) for line in axes.lines}
    save_figure(figure, tmp_path / "dice.png")
    assert imread(tmp_path / "dice.png")[..., :3].std() > 0.05


@pytest.mark.parametrize(("tp", "start"), [((90, 95), 0.85), ((50, 95), 0.45), ((5, 95), 0.0)])
def test_an_axis_that_starts_late_says_so(tp: tuple[int, int], start: float) -> None:
    cases = [case(str(i), x=(n, 100 - n, 100 - n, 0)) for i, n in enumerate(tp)]
    (axes,) = draw_scores(Summary(tuple(cases))).axes
    low, high = axes.get_xlim()
    assert low == pytest.approx(start, abs=0.03)
    assert high >= 1
    assert (f"{start:g}" in axes.get_xlabel()) == (start > 0)


def test_a_penalty_is_no_point() -> None:
    found = [case("a", x=(5, 1, 1, 9)), case("b", x=(0, 0, 5, 9)), case("c", x=(5, 1, 1, 9))]
    mm = {"a": 2.0, "b": 900.0, "c": 3.0}
    cases = tuple(replace(c, surfaces={"x": Surface(mm[c.case], 1.0, 0.5)}) for c in found)
    axes = draw_scores(Summary(cases), SURFACE).axes[1]
    assert points(axes) == [[2.0, 3.0]]
    assert axes.get_xlim()[1] < 10
    assert [text.get_text().strip() for text in axes.texts] == ["1 penalty"]
    assert names(draw_scores(Summary(cases), SURFACE).axes[0]) == ["x  n = 3"]


def test_nothing_is_defined() -> None:
    (axes,) = draw_scores(Summary((case("a", x=(0, 0, 0, 8)),))).axes
    assert names(axes) == ["x  missing"]
    assert draw_scores(Summary(())).axes


def test_a_panel_a_class_and_a_row_a_fold() -> None:
    groups: Groups = {"fold 0": {"x": [0.5, None, 0.7], "y": [0.1]}, "fold 1": {"x": [], "y": []}}
    left, right = draw_groups({"plan": groups}).axes
    assert (left.get_title(), right.get_title()) == ("x", "y")
    assert names(left) == ["fold 0  n = 2", "fold 1  missing"]
    assert points(left) == [[0.5, 0.7]]
    several = draw_groups({"k = 2": groups, "k = 3": {"fold 0": {"x": [0.4]}}}).axes[0]
    assert names(several)[2] == "k = 3: fold 0  n = 1"


def test_of_very_many_classes_the_mean_is_drawn() -> None:
    classes = {str(i): [0.2, 0.4] for i in range(MOST_PANELS)} | {"last": [1.0, None]}
    (axes,) = draw_groups({"plan": {"fold 0": classes}}).axes
    means = [(MOST_PANELS * 0.2 + 1) / (MOST_PANELS + 1), 0.4]
    assert points(axes)[0] == pytest.approx(sorted(means))
    assert str(MOST_PANELS + 1) in axes.get_title()


def test_limits_of_agreement() -> None:
    """Bland and Altman 1986: the mean of the differences ± 1.96 standard deviations."""
    pairs = ((10, 12), (20, 19), (30, 33), (40, 40))
    cases = [
        case(str(i), x=(min(a, b), max(b - a, 0), max(a - b, 0), 9))
        for i, (a, b) in enumerate(pairs)
    ]
    (axes,) = draw_volumes(Summary(tuple(cases))).axes
    differences = np.array([b - a for a, b in pairs], float)
    lines = sorted({float(np.asarray(line.get_ydata())[0]) for line in axes.lines[1:]})
    expected = differences.mean() + np.array([-1.96, 0, 1.96]) * differences.std(ddof=1)
    assert np.allclose(lines, sorted([0.0, *expected]), atol=1e-9)
    assert points(axes)[0] == [11, 19.5, 31.5, 40]


@pytest.mark.parametrize("count", [1, 7, 40, 117])
def test_names_of_any_number_of_classes_are_straight_and_inside(count: int) -> None:
    labels = {f"a rather long name of organ {i}": (i, 3, 3, 9) for i in range(1, count + 1)}
    summary = Summary(tuple(case(name, **labels) for name in ("a", "b")))
    figures: list[Figure] = [draw_scores(summary), draw_groups({"p": {"fold 0": summary.dice}})]
    for figure in figures:
        figure.draw_without_rendering()
        whole = figure.bbox
        for axes in figure.axes:
            for text in (*axes.get_yticklabels(), axes.xaxis.label, axes.title):
                box = text.get_window_extent()
                assert text.get_rotation() == 0
                assert "\n" not in text.get_text()
                assert whole.x0 <= box.x0
                assert box.x1 <= whole.x1


# Colour vision deficiencies of full severity: Machado, Oliveira and Fernandes 2009, Table 1.
MACHADO = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


def seen(colour: str, matrix: tuple[tuple[float, ...], ...]) -> NDArray[np.float64]:
    """A colour as somebody with a deficiency sees it, in CIELAB."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    mixed = np.clip(np.array(matrix) @ linear, 0, 1)
    back = np.where(mixed <= 0.0031308, 12.92 * mixed, 1.055 * mixed ** (1 / 2.4) - 0.055)
    return np.asarray(rgb2lab(back), float)


@pytest.mark.parametrize("deficiency", MACHADO)
@pytest.mark.parametrize("palette", [COLOURS, DARK_COLOURS, tuple(ERROR_COLOURS.values())])
def test_the_colours_of_a_palette_differ_for_the_colour_blind(
    palette: tuple[str, ...], deficiency: str
) -> None:
    labs = [seen(colour, MACHADO[deficiency]) for colour in palette]
    differences = [float(deltaE_ciede2000(a, b)) for a, b in combinations(labs, 2)]
    assert min(differences) > 8  # 2.3 is just noticeable


def test_errors_differ_in_grey() -> None:
    lightness = sorted(rgb2lab(np.array(to_rgb(each)))[0] for each in ERROR_COLOURS.values())
    assert min(np.diff(lightness)) > 5
