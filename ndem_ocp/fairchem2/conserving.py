"""Continue from a model with direct forces, with forces that are gradients of the energy."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from fairchem.core.models.base import HydraModel
from fairchem.core.models.uma.escn_md import MLP_EFS_Head
from fairchem.core.units.mlip_unit.mlip_unit import initialize_finetuning_model
from torch import nn

from ndem_ocp.fairchem2.section import refusals
from ndem_ocp.method import SettingsError

HEAD = "efs"


def conserving_model(
    checkpoint_location: str, stress: bool = False, overrides: dict[str, Any] | None = None
) -> HydraModel:
    """A model with conserving forces, from a checkpoint with direct forces.

    Use it as ``_target_`` of ``model``. Backbone and energy head keep their weights; the heads of
    forces and stress are dropped. fairchem's ``initialize_finetuning_model`` cannot do this: with
    ``heads`` the energy head would start from random weights, and with ``direct_forces: False`` in
    its overrides a checkpoint with ``MLP_Energy_Head`` cannot be loaded.

    Args:
        checkpoint_location: an ``inference_ckpt.pt``. stress: whether to predict the stress as
            well.
        overrides: changes of the checkpoint's model configuration, as in fairchem.

    Raises:
        SystemExit: status 2 and one sentence, if the checkpoint is of another kind.
    """
    model = initialize_finetuning_model(checkpoint_location, overrides)
    with refusals():
        energy = _energy_head(model, checkpoint_location)
    regress = model.backbone.regress_config
    regress.direct_forces = regress.direct_stress = False
    regress.forces, regress.stress = True, stress
    with torch.random.fork_rng():
        head = MLP_EFS_Head(model.backbone, reduce=energy.reduce)
    head.energy_block.load_state_dict(energy.energy_block.state_dict())
    model.output_heads = nn.ModuleDict({HEAD: head})
    model.pass_through_head_outputs = True
    # resume.yaml builds the model from this
    config = copy.deepcopy(model.finetune_model_full_config)
    config["backbone"] |= {
        "direct_forces": False,
        "direct_stress": False,
        "regress_forces": True,
        "regress_stress": stress,
    }
    module = f"{MLP_EFS_Head.__module__}.{MLP_EFS_Head.__name__}"
    config["heads"] = {HEAD: {"module": module, "reduce": energy.reduce}}
    config["pass_through_head_outputs"] = True
    model.finetune_model_full_config = config
    logging.info("ndem: conserving forces; backbone and energy head come from the checkpoint.")
    return model


def _energy_head(model: HydraModel, path: str) -> MLP_EFS_Head:
    found = [head for head in model.output_heads.values() if isinstance(head, MLP_EFS_Head)]
    if len(found) != 1 or not hasattr(model.backbone, "regress_config"):
        kinds = ", ".join(type(head).__name__ for head in model.output_heads.values())
        raise SettingsError(
            f"{path}: conserving forces need an eSCN-MD backbone and one energy head "
            f"(MLP_Energy_Head), but the heads of this checkpoint are {kinds}. Use fairchem's "
            "initialize_finetuning_model, which creates new heads."
        )
    return found[0]
