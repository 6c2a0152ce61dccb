"""Second views with realistic curvature: structures displaced by eps, labelled with a cheap
potential.

The forces of a potential T that anyone can install are often poor, but their *change* over a few
hundredths of an Angstrom is often good. So T labels the change, and DFT the rest:

    F(X + eps) ~ F_DFT(X) + s [T(X + eps) - T(X)]

============================  ===================================================================
``sidecar``                   the file of second views, linked to records by their structures
``make.make_second_views``    writes it (``ndem data second-views``)
``source.ViewSource``         draws from it in training
============================  ===================================================================

Making views needs ASE, NumPy, lmdb and the potential, but neither fairchem nor torch_geometric.
Energies are in eV, forces in eV/A, lengths in A, whatever units the data set has.
"""
