"""The files of trained models: where they are, checkpoints, packed models and training logs.

Knows plans and file formats. Must not know how a network is built, trained or applied.
"""
