"""Faults are put where they may happen, and after each it is asked what was lost.

    PYTHONPATH=src:tests python -m faults --seed 0

A trial runs a small comparison in a process of its own, disturbs it, and starts it again: it must end with
the records and the weights of the undisturbed one, and what was recorded before must be there still.
"""
