"""How forces change over near frames: in the data, and as calculators and models say."""
