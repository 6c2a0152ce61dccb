"""Measurements for docs/: ``python -m ndem_ocp.bench.experiments.NAME``, in a repository clone.

Each writes results/NAME.json, or several files whose names begin with NAME, including the commit.
"""
