"""What a data set is like, measured in one pass over its files."""

from autoseg.fingerprint.figures import CaseFigures, ChannelFigures
from autoseg.fingerprint.fingerprint import Fingerprint
from autoseg.fingerprint.intensities import Intensities
from autoseg.fingerprint.labels import LabelFigures
from autoseg.fingerprint.surveying import survey

__all__ = ["CaseFigures", "ChannelFigures", "Fingerprint", "Intensities", "LabelFigures", "survey"]
