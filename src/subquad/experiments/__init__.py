"""Runs and sets of runs: what is asked, one run in its process, many of them, and the main job, `compare`."""
