"""Benchmarks: one file a question, answers compared before anything is timed. `python -m benchmarks` runs all.

>>> list(sweep_rows(gpt2_shape("cpu"), "cpu", "small", seconds=1.0))
"""

import os

# Threads that spin while they wait for others starve each other on a busy machine. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
