"""Figures of scores (box plots, bars, differences) and of cases (overlays, slices).

Knows scores, images and label maps. Must not know the report page that embeds the figures.
"""
