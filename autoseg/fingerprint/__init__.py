"""The fingerprint of a data set, measured in one pass over its files.

This room knows the raw data. It knows nothing of plans and of how the fingerprint is used.
"""

from autoseg.fingerprint.fingerprint import Fingerprint, survey

__all__ = ["Fingerprint", "survey"]
