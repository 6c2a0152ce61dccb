"""Measurements that the pages show: ``python -m ndem_ocp.bench.experiments.NAME``, in a checkout.

Each writes results/NAME.json, or files whose names begin so, with the commit it was made at.
"""
