"""autoseg: from a folder of labelled scans to a validated 3D segmentation model."""

__version__ = "0.0.1"
