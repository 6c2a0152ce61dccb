"""``ndem report``: runs as one page that needs no network, and their table."""
