"""What stops a run in its first seconds: mistakes in its configuration, each with what to do.

Every check yields sentences, one per mistake; ``training/config.py`` collects them into one
:class:`ConfigError`. Warnings about harmless things are logged once, by rank 0.
"""
