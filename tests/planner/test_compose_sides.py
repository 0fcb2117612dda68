"""Labels of the left and the right side, found by their names."""

from __future__ import annotations

import pytest

from autoseg.planner.compose import by_name, pairs_of


@pytest.mark.parametrize(
    "pair",
    [
        ("left lung", "right lung"),
        ("lung_left", "lung_right"),
        ("Left-Lung", "RIGHT_lung"),
        ("LeftParotid", "RightParotid"),
        ("Parotid_L", "Parotid_R"),
        ("kidneyL", "kidneyR"),
        ("l. kidney", "r. kidney"),
        ("L_Kidney", "R_Kidney"),
        ("Niere links", "Niere rechts"),
        ("linke Niere", "rechte Niere"),
        ("linker Vorderlappen", "rechter Vorderlappen"),
        ("rein gauche", "rein droit"),
        ("glande gauche", "glande droite"),
        ("riñón izquierdo", "riñón derecho"),
        ("leftlung", "rightlung"),
        ("lungleft", "lungright"),
        ("left", "right"),
        ("rib_left_5", "rib_right_5"),
        ("ctx-lh-precuneus", "ctx-rh-precuneus"),
        ("Left-Lateral-Ventricle", "Right-Lateral-Ventricle"),
    ],
)
def test_pairs(pair: tuple[str, str]) -> None:
    assert by_name(["tumour", *pair, "spine"]) == [pair]
    assert by_name([*pair[::-1], "tumour"]) == [pair]


@pytest.mark.parametrize(
    "names",
    [
        ["liver", "river"],
        ["l5", "r5"],
        ["L5", "R5"],
        ["lung", "rung"],
        ["left lung", "right kidney"],
        ["left lung", "lung"],
        ["left lung upper", "left lung lower"],
        ["bright", "bleak"],
        ["rein gauche", "rein droit", "rein droite"],  # which of them?
        ["left ventricle", "right ventricle"],  # of the heart
        ["left atrium", "right atrium"],
        ["Liver left lobe", "Liver right lobe"],
    ],
)
def test_no_pairs(names: list[str]) -> None:
    assert by_name(names) == []


def test_several_pairs() -> None:
    names = ["kidney_left", "lung_right", "kidney_right", "spine", "lung_left"]
    assert by_name(names) == [("kidney_left", "kidney_right"), ("lung_left", "lung_right")]


def test_values() -> None:
    labels = {"background": [0], "left lung": [4], "right lung": [2], "infection": [3]}
    assert pairs_of(labels, None)[0] == ((4, 2),)
    assert pairs_of(labels, {})[0] == ()
    assert pairs_of(labels, {"infection": "right lung"})[0] == ((3, 2),)


def test_regions() -> None:
    labels = {
        "background": [0],
        "lungs": [1, 2],
        "left lung": [1, 3],
        "right lung": [2, 4],
        "lesions": [3, 4],
    }
    assert pairs_of(labels, None)[0] == ((1, 2), (3, 4))
    pairs, why = pairs_of(labels | {"lungs": [1, 4]}, None)
    assert pairs == ()
    assert "lungs" in why
