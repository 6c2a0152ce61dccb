"""NDeM itself, in plain torch: settings, noise and objective, to be read next to Eqs. 9-18.

Nothing in this folder imports fairchem or torch_geometric, so that other training codes can use it.
"""

from ndem_ocp.method.dens import DeNS, dens_loss, forces_of_clean_atoms, forces_to_encode
from ndem_ocp.method.diagnostics import Tally, change_diagnostics, noise_diagnostics
from ndem_ocp.method.ndem import Forces, NDeM, ndem_loss
from ndem_ocp.method.noise import Noise, ViewLabels, choose_graphs, draw_noise, step_generator
from ndem_ocp.method.noisy_nodes import NoisyNodes, noisy_nodes_loss
from ndem_ocp.method.objective import (
    AuxiliaryLoss,
    Objective,
    Step,
    noise_target,
    per_atom_error,
    typical_scale,
)
from ndem_ocp.method.registry import OBJECTIVES, objective_of, register
from ndem_ocp.method.schedules import SettingsError, at
from ndem_ocp.method.second_views import (
    Instead,
    view_energy,
    view_forces,
    view_weights,
    weighted_residual,
    with_first_order_labels,
)
from ndem_ocp.method.settings import NDeMSettings

__all__ = [
    "OBJECTIVES",
    "AuxiliaryLoss",
    "DeNS",
    "Forces",
    "Instead",
    "NDeM",
    "NDeMSettings",
    "Noise",
    "NoisyNodes",
    "Objective",
    "SettingsError",
    "Step",
    "Tally",
    "ViewLabels",
    "at",
    "change_diagnostics",
    "choose_graphs",
    "dens_loss",
    "draw_noise",
    "forces_of_clean_atoms",
    "forces_to_encode",
    "ndem_loss",
    "noise_diagnostics",
    "noise_target",
    "noisy_nodes_loss",
    "objective_of",
    "per_atom_error",
    "register",
    "step_generator",
    "typical_scale",
    "view_energy",
    "view_forces",
    "view_weights",
    "weighted_residual",
    "with_first_order_labels",
]
