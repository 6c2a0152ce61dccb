"""Read by fairchem's setup_imports(): registers the short names ndem, ndem_hydra, ..."""

import ndem_ocp

ndem_ocp.register()
