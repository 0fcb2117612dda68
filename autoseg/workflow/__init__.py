"""What a command does: plan a task, train and validate a fold, and where their files are.

This room combines data, planning, training, prediction and evaluation. It must not know about
studies (many runs), export, or the command line.
"""
