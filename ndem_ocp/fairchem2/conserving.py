"""From direct forces to forces that are gradients of the energy: a checkpoint's second part."""

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
    """The model of a direct checkpoint with conserving forces (a ``_target_`` for ``model``).

    The backbone and the energy head keep their weights; the heads of forces and stress are left
    out. With ``heads`` in fairchem's ``initialize_finetuning_model`` the energy head would start
    random, and with ``direct_forces: False`` among its overrides a checkpoint with
    ``MLP_Energy_Head`` does not load.

    Args:
        checkpoint_location: an ``inference_ckpt.pt``. stress: also the stress.
        overrides: of the checkpoint's model configuration, as fairchem's.

    Raises:
        SystemExit: status 2 and one sentence, where the checkpoint is of another kind.
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
    # What resume.yaml builds the model from.
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
    logging.info("ndem: conserving forces; backbone and energy head are the checkpoint's.")
    return model


def _energy_head(model: HydraModel, path: str) -> MLP_EFS_Head:
    found = [head for head in model.output_heads.values() if isinstance(head, MLP_EFS_Head)]
    if len(found) != 1 or not hasattr(model.backbone, "regress_config"):
        kinds = ", ".join(type(head).__name__ for head in model.output_heads.values())
        raise SettingsError(
            f"{path}: to get conserving forces it needs an eSCN-MD backbone and one energy head "
            f"(MLP_Energy_Head); its heads are {kinds}. Use fairchem's "
            "initialize_finetuning_model, which makes new heads."
        )
    return found[0]
