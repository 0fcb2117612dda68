"""The commands: arguments, printed results, error lines and exit statuses.

A command parses its arguments and calls the other rooms; it contains no computation. Other rooms
must not import this one. Modules import heavy libraries inside functions, to keep `--help` fast.
"""
