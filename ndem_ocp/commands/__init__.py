"""The commands of ``ndem``: ``table`` lists them, ``parser`` makes the argument parser of them."""
