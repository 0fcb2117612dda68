"""Studies: many plans and folds of a task, run on this machine or a cluster, and their results.

This room knows runs and their status, and starts a process for each. Everything inside a run
(training, prediction, scores) belongs to the rooms before it; it must not know the command line.
"""
