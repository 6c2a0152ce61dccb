"""``ndem report``: runs on one self-contained HTML page, and their table."""
