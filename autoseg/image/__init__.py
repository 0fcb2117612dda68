"""Scans and label maps: files to arrays in x, y, z order on a voxel grid, and back.

Knows file formats (NIfTI, NRRD, MetaImage, DICOM) and ITK. Must not know data sets, plans or
models. SimpleITK and pydicom are imported on first use: the augmentation workers import this room
through the case store, but read no image file.
"""
