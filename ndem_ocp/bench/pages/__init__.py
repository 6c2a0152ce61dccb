"""Tables and pictures of the README and docs/*.md, from results/*.json.

``python -m ndem_ocp.bench.pages.write`` (``make results``) writes all tables. No table is edited by
hand.
"""
