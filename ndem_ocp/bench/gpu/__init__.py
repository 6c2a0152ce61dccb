"""Stages of check.py, each a module with ``run(check, results)``."""
