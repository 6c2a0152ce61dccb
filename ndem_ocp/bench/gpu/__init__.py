"""Stages of check.py; each is a module with a function ``run(check, results)``."""
