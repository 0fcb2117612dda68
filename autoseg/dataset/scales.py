"""Which scale an image's intensities are on, as far as they tell it themselves."""

from __future__ import annotations

import re

HOUNSFIELD = "hounsfield"
BYTES = "0..255"
UNIT = "0..1"
OTHER = "other"

FAT_HU = -100.0  # every body part holds fat or air
LARGEST_HU = 4096.0  # 12 bits; metal and padding reach further, but not 0.5 % of a scan


def scale_of(smallest: float, low: float, high: float, largest: float) -> str:
    """`hounsfield`, `0..255`, `0..1` or `other`.

    Hounsfield units need something as light as fat; a scan that was shifted by 1024 or clipped at
    0 has nothing below 0 and is `other`.

    Args:
        smallest: the least intensity of the whole image.
        low: its 0.5 percentile.
        high: its 99.5 percentile.
        largest: its greatest intensity.
    """
    if smallest >= 0 and largest <= 1:
        return UNIT
    if smallest >= 0 and largest <= 255:
        return BYTES
    if smallest <= FAT_HU and low >= -LARGEST_HU and high <= LARGEST_HU:
        return HOUNSFIELD
    return OTHER


def is_called_ct(channel: str) -> bool:
    """Whether a channel's name says that it is computed tomography, as CT, CTA or low_dose_ct."""
    return re.search(r"(^|[^a-z])cta?($|[^a-z])", channel.casefold()) is not None
