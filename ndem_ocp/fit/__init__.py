"""``ndem fit``: from files of frames to a judged model.

In order: ``inputs`` (which files), ``splitting`` (which frames train), ``dataset`` (conversion,
checks, statistics), ``plan`` (which model, and why), ``length`` (how long), ``config`` (the YAML
file), ``result`` (is it any good). ``folder`` remembers what is done, ``command`` runs all of it.
"""
