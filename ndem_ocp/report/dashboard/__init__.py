"""``ndem dashboard``: a W&B workspace with the panels that a user of this package would build."""
