"""Evaluation: metrics of label maps, their tables, figures and report, and learned postprocessing.

Knows plans, label maps on disk, and what training and prediction record beside their models.
Must not know how a network is trained or applied, nor the workspace: callers pass the folders.
"""
