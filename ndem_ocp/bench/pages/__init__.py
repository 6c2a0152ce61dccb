"""Tables and figures in the README and docs/*.md, from results/*.json.

``python -m ndem_ocp.bench.pages.write`` (``make results``) writes all tables; never edit a table by
hand.
"""
