"""How forces change between near frames: in the data, and as predicted by calculators and
models."""
