"""``ndem fit``: from files of frames to an evaluated model.

In order: ``inputs`` (which files), ``splitting`` (which frames train), ``dataset`` (conversion,
checks, statistics), ``plan`` (which model, and why), ``length`` (how long), ``config`` (the YAML
file), ``result`` (is it any good). ``folder`` records what is done, ``command`` runs all the steps.
"""
