from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from autoseg.fingerprint.statistics import LabelFigures, measure_labels

shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
LABELS = {"background": (0,), "one": (1,), "two": (2,), "far": (300,), "some": (1, 2)}


def test_golden_figures() -> None:
    label = np.zeros((6, 5, 4), np.uint8)
    label[0, 0, 0] = label[1, 1, 1] = 1  # corners touch: one piece
    label[4, 1, 3] = 1
    label[2:4, 1, 1] = 2
    found = measure_labels(label, LABELS, (10.0, 5.0, 2.5))
    assert found == {
        "one": LabelFigures(volume_ml=0.375, components=2, extent_mm=(50.0, 10.0, 10.0)),
        "two": LabelFigures(volume_ml=0.25, components=1, extent_mm=(20.0, 5.0, 2.5)),
        "far": LabelFigures(volume_ml=0.0, components=0, extent_mm=None),
        "some": LabelFigures(volume_ml=0.625, components=2, extent_mm=(50.0, 10.0, 10.0)),
    }
    assert [label.present for label in found.values()] == [True, True, False, True]


@given(hnp.arrays(np.uint16, shapes, elements=st.sampled_from([0, 0, 0, 1, 2, 300])))
def test_figures_equal_scipys(label: NDArray[np.uint16]) -> None:
    from scipy.ndimage import label as components_of

    spacing_mm = (0.5, 1.0, 2.0)
    for name, found in measure_labels(label, LABELS, spacing_mm).items():
        mask = np.isin(label, LABELS[name])
        places = np.argwhere(mask)
        assert found.volume_ml == pytest.approx(len(places) / 1000)
        assert found.components == components_of(mask, np.ones((3, 3, 3)))[1]
        extent: Any = (np.ptp(places, axis=0) + 1) * spacing_mm if len(places) else None
        assert found.extent_mm == (None if extent is None else pytest.approx(extent))
