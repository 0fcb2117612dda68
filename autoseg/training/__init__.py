"""Training of one fold: the loop in `train`, and what hangs on it.

Knows plans, preprocessed cases, augmentation, networks and model files. Must not know raw images,
commands or how predictions are made and scored.
"""
