"""Checks that find mistakes in a configuration in the first seconds of a run.

Every check yields one sentence per mistake, which says what to do; ``training/config.py`` collects
them into one :class:`ConfigError`. Warnings about harmless settings are logged once, by rank 0.
"""
