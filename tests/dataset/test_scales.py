from __future__ import annotations

import pytest

from autoseg.dataset.checks import is_called_ct, scale_of


@pytest.mark.parametrize(
    ("figures", "scale"),
    [
        ((-1024, -1024, 1500, 3071), "hounsfield"),  # a scan with air and bone
        ((-3024, -3024, 1200, 28000), "hounsfield"),  # padding and metal
        ((-1250, -1250, 250, 250), "hounsfield"),  # a lung window
        ((-150, -120, 240, 900), "hounsfield"),  # a crop without air
        ((0, 0, 250, 255), "0..255"),  # windowed and scaled, as radiopaedia's
        ((0, 0, 0.99, 1), "0..1"),
        ((0, 0, 1653, 22575), "other"),  # Hounsfield units + 1024
        ((-3.5, -2, 4, 6), "other"),  # z-scores
        ((-32768, -32768, 1500, 3071), "other"),
        ((-200, -150, 30000, 32767), "other"),
    ],
)
def test_scales(figures: tuple[float, float, float, float], scale: str) -> None:
    assert scale_of(*figures) == scale


@pytest.mark.parametrize("name", ["CT", "ct", "CTA", "CT_venous", "low_dose_ct", "abdominal CT"])
def test_names_of_ct(name: str) -> None:
    assert is_called_ct(name)


@pytest.mark.parametrize("name", ["MRI", "T1", "ACT", "image", "noct", "CTV_MR"])
def test_names_of_other_channels(name: str) -> None:
    assert not is_called_ct(name)
