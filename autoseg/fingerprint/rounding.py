"""Figures for people: six significant digits, so that JSON stays short and the same."""

from __future__ import annotations

SIGNIFICANT_DIGITS = 6


def rounded(value: float) -> float:
    """Round to six significant digits."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
