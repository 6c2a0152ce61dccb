"""Time and memory of a training step, an evaluation and data reading, and how they grow.

``ndem bench step``       upstream, naive NDeM, ours plain, ours with NDeM, DeNS; interleaved
``ndem bench inference``  energies and forces, upstream's EquiformerV2 against ours
``ndem bench data``       this package's reader against fairchem's, by number of workers
``ndem bench scaling``    the step's cost against atoms, edges, degree, layers and batch
"""
