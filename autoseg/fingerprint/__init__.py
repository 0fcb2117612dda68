"""What a data set is like, measured in one pass over its files."""

from autoseg.fingerprint.fingerprint import CaseFigures, ChannelFigures, Fingerprint
from autoseg.fingerprint.statistics import Intensities, LabelFigures
from autoseg.fingerprint.survey import survey

__all__ = ["CaseFigures", "ChannelFigures", "Fingerprint", "Intensities", "LabelFigures", "survey"]
