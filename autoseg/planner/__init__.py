"""How a plan is made: nnU-Net's rules, our own, overrides, time budgets, and the explanation.

Knows what data are like (`fingerprint`), but reads no images and trains nothing: timings of a
device are passed in. Nothing that executes a plan needs this package.
"""
