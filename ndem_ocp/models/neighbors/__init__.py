"""Neighbours of atoms in periodic structures: fairchem's edges to the bit, without all its pairs.

fairchem's ``radius_graph_pbc`` measures every pair of atoms of a structure in every image within
the cutoff, and then keeps the nearest few: 20 of about 400 within 12 Angstrom. Here a radius that
holds somewhat more than those is searched first, and the cutoff only for atoms that found too few.

Perfect crystals have ties at the last neighbour kept; rounding decides some of them. So images,
distances and the choice among the equally far are computed as fairchem computes them, in float32,
and only pairs that cannot be chosen are left out. docs/neighbors.md has what it gains.
"""

from ndem_ocp.models.neighbors.edges import periodic_edges
from ndem_ocp.models.neighbors.graph import NearestNeighbors

__all__ = ["NearestNeighbors", "periodic_edges"]
