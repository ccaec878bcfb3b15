"""Benchmarks: one file a question, answers compared before anything is timed. `python -m benchmarks` runs all."""
