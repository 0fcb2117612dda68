"""What a plan is: its sections, their checks, its ids, and how it is read from JSON.

Knows nothing of data, of the rules that make a plan (`planner`) or of the code that executes it.
"""
