"""Training batches: which patches are drawn, how they are augmented, and who makes them.

This room knows the plan and the case store. It knows nothing of networks, losses or optimisers.
"""
