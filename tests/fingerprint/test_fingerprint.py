from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autoseg.common.errors import AutosegError
from autoseg.fingerprint import (
    CaseFigures,
    ChannelFigures,
    Fingerprint,
    Intensities,
    LabelFigures,
)

ANY = Intensities(mean=0, std=1, min=-1024, p00_5=-1000, median=0, p99_5=900, max=1000)
THERE, ABSENT = LabelFigures(1.0, 1, (1.0, 2.0, 3.0)), LabelFigures(0.0, 0, None)
CASE = CaseFigures(
    shape=(2, 2, 2),
    spacing_mm=(1.0, 1.0, 1.0),
    orientation="LPS",
    shape_after_crop=(2, 2, 2),
    channels=(ChannelFigures("hounsfield", ANY, None),),
    voxels={0: 8},
    labels={"lung": THERE, "infection": ABSENT},
    content="",
)


def fingerprint(cases: dict[str, CaseFigures]) -> Fingerprint:
    labels: dict[str, tuple[int, ...]] = {"background": (0,), "lung": (1,), "infection": (2,)}
    return Fingerprint("Task001_COVID", ("CT",), labels, None, (None,), cases)


def test_spacings_survive_the_file_exactly(tmp_path: Path) -> None:
    spacing_mm = (0.1 + 0.2, 0.9765620231628418, 3.2699999809265137)
    found = fingerprint({"a": replace(CASE, spacing_mm=spacing_mm)})
    found.save(tmp_path / "fingerprint.json")
    again = Fingerprint.load(tmp_path / "fingerprint.json")
    assert again == found
    assert again.cases["a"].spacing_mm == spacing_mm
    assert again.median_spacing_mm == spacing_mm


def test_presence_names_the_labels_of_each_case() -> None:
    sick = replace(CASE, labels={"lung": THERE, "infection": THERE})
    assert fingerprint({"a": CASE, "b": sick}).presence == {
        "a": frozenset({"lung"}),
        "b": frozenset({"lung", "infection"}),
    }


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"format": 1}', '{"format": 2}', '{"format": 99}', "{"]
)
def test_what_is_not_a_fingerprint_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fingerprint.json"
    path.write_text(text)
    with pytest.raises(AutosegError, match=r"fingerprint\.json"):
        Fingerprint.load(path)


def test_a_missing_fingerprint_is_told(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match="is missing"):
        Fingerprint.load(tmp_path / "fingerprint.json")
