"""Stages of gpu_check.py, each a module with ``run(check, results)``."""
