"""Data, resumable training, launching, evaluation and reports for fairchem-core 1.10.

It does not know NDeM, so that whoever trains plainly can use it too; ``ndem_ocp`` is built on it.
Importing this package is quick and loads neither torch nor fairchem.

A package with trainers, models or heads of its own names a function that registers them with
fairchem as an entry point of the group ``fairchem_kit.register``; it is called before anything is
built from a configuration or a checkpoint (:func:`fairchem_kit.plugins.register`).
"""

from fairchem_kit.errors import UserError
from fairchem_kit.hosts import host

__version__ = "0.1.0"
__all__ = ["UserError", "__version__"]

if host() == 1:
    import ndem_ocp_standins

    ndem_ocp_standins.install()  # before fairchem, which imports torch_scatter and torch_sparse
