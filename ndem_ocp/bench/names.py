"""What the options of ``ndem bench`` may name: this module imports nothing."""

from __future__ import annotations

# name -> file of configs/oc20
MODELS = {
    "demo": "demo.yml",
    "small": "small.yml",
    "31M": "31M.yml",
    "83M": "83M_2M.yml",
    "153M": "153M.yml",
}
# The channels of all of OC20's models, and few enough layers for minutes on a laptop.
DEFAULT_MODEL, DEFAULT_LAYERS = "31M", 2

#: Arms of ``ndem bench step``; ndem_ocp.bench.arms says what they are.
ARMS = ("upstream", "naive", "joint", "plain", "ndem", "dens")
STEP_ARMS = ("upstream", "naive", "plain", "ndem", "dens")  # where --arms is not given
SCALING_ARMS = ("upstream", "naive", "plain", "ndem")

#: What ``ndem bench scaling`` lets grow; ndem_ocp.bench.scaling says how.
AXES = ("atoms", "edges", "L", "layers", "batch")
