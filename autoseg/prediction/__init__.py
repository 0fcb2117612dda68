"""Segment new scans with trained models, on the scans' own grids.

Knows models, preprocessing steps, the sliding window and the files of a prediction. Must not know
training, evaluation or the workspace: the previous stage of a cascade is found beside its model.
"""
