"""``ndem dashboard``: a W&B workspace with panels for runs of this package."""
