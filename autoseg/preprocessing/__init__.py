"""Preprocessing: the steps of a plan applied to scans and label maps, and the store of the results.

This room knows plans and raw cases. It knows nothing of networks, sampling or augmentation.
"""
