"""The report of an evaluation: one HTML page, and the tables and figures beside it.

Knows scores, figures, plans, fingerprints and training logs. Must not compute scores itself.
"""
