"""Pass trained models on: as one zip file for autoseg, or as networks for other programs.

Knows model folders, plans, fingerprints and scores. Must not know how a model is trained or how a
command line is parsed.
"""
