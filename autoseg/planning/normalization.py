"""How each channel's intensities are normalized, by the channel's name and nnU-Net's rules."""

from __future__ import annotations

MASK_BELOW = 0.75  # of the median relative size after cropping to non-zero

NORMALIZATIONS = {
    "ct": "CTNormalization",
    "nonorm": "NoNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}
PER_CASE = "ZScoreNormalization"  # every other name; only this scheme can use the mask


def schemes(channels: tuple[str, ...]) -> tuple[str, ...]:
    """nnU-Net's scheme of each channel; upper and lower case are the same."""
    return tuple(NORMALIZATIONS.get(name.casefold(), PER_CASE) for name in channels)


def use_masks(channels: tuple[str, ...], relative_size_after_cropping: float) -> tuple[bool, ...]:
    """Whether only a channel's non-zero part is normalized: if cropping removed a quarter."""
    much_is_zero = relative_size_after_cropping < MASK_BELOW
    return tuple(much_is_zero and scheme == PER_CASE for scheme in schemes(channels))
