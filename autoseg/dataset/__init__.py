"""The raw data set of a task: its declaration, its files, its problems and its splits.

This room reads headers and label values but never decides how to preprocess, plan or train.
"""
