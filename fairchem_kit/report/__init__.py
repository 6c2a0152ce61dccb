"""Histories of runs, tables and figures."""
