"""Checkpoints of the layout of published ones, with random weights and tiny sizes.

Published files cannot be had where the tests run. Names, shapes and hyper-parameters are those of
the sources' code, which each function names; nothing here was compared with a published file.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

HIDDEN, LAYERS, RBF, HEADS, MAX_Z, CUTOFF = 16, 2, 8, 2, 20, 4.0
NOISE_STD = 0.04

# shehzaidi/pre-training-via-denoising, examples/ET-PCQM4MV2.yaml: keys as there, values tiny.
HYPER: dict[str, Any] = {
    "activation": "silu",
    "aggr": "add",
    "atom_filter": -1,
    "attn_activation": "silu",
    "cutoff_lower": 0.0,
    "cutoff_upper": CUTOFF,
    "dataset": "PCQM4MV2",
    "derivative": False,
    "distance_influence": "both",
    "embedding_dimension": HIDDEN,
    "energy_weight": 0.0,
    "force_weight": 1.0,
    "max_num_neighbors": 32,
    "max_z": MAX_Z,
    "model": "equivariant-transformer",
    "neighbor_embedding": True,
    "num_heads": HEADS,
    "num_layers": LAYERS,
    "num_rbf": RBF,
    "output_model": "Scalar",
    "precision": 32,
    "prior_model": None,
    "rbf_type": "expnorm",
    "reduce_op": "add",
    "standardize": False,
    "trainable_rbf": False,
    "output_model_noise": "VectorOutput",
    "position_noise_scale": NOISE_STD,
    "denoising_weight": 1.0,
    "denoising_only": True,
    "layernorm_on_vec": None,
}


def torchmd_net(**changed: Any) -> nn.Module:
    """torchmd-net's own model of these hyper-parameters, with weights that are not its initial."""
    from ndem_ocp.models.torchmd import require_torchmd

    model = require_torchmd("models.model").create_model({**HYPER, "derivative": True, **changed})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def old_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As before torchmd-net's pull request 314: no MLP class, no box of the neighbour search."""
    plain = {}
    for name, value in weights.items():
        name = re.sub(r"(update_net|output_network)\.layers\.", r"\1.", name)
        if name != "representation_model.distance.box":
            plain[name] = value.clone()
    return plain


def vector_head() -> nn.Module:
    from ndem_ocp.models.torchmd import require_torchmd

    return require_torchmd("models.output_modules").EquivariantVectorOutput(HIDDEN)


def pos_normalizer(std: float = NOISE_STD, count: float = 1000.0) -> dict[str, Tensor]:
    """AccumulatedNormalization of torchmdnet/models/model.py in DP-TorchMD-NET, Frad, SliDe."""
    return {
        "pos_normalizer.acc_sum": torch.zeros(3),
        "pos_normalizer.acc_squared_sum": torch.full((3,), count * std**2),
        "pos_normalizer.acc_count": torch.tensor([count]),
        "pos_normalizer.num_accumulations": torch.tensor([10.0]),
    }


def lightning(weights: dict[str, Tensor], hyper: dict[str, Any] | None) -> dict[str, Any]:
    """A checkpoint of pytorch-lightning's Trainer, without optimizer states."""
    return {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "1.8.6",
        "state_dict": {f"model.{name}": value for name, value in weights.items()},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.1)}},
        "hparams_name": "hparams",
        **({} if hyper is None else {"hyper_parameters": hyper}),
    }


def torchmd_layout(**changed: Any) -> dict[str, Any]:
    """TorchMD-NET after MD17 training: torchmdnet/models/model.py, today's names."""
    hyper = {**HYPER, "derivative": True, "energy_weight": 1.0, "denoising_only": False, **changed}
    for key in ("output_model_noise", "position_noise_scale", "layernorm_on_vec"):
        hyper.pop(key)
    model = torchmd_net(**changed)
    model.mean.fill_(-406.7)
    model.std.fill_(2.5)
    return lightning({name: value.clone() for name, value in model.state_dict().items()}, hyper)


def dp_layout(whitened: bool = True, **changed: Any) -> dict[str, Any]:
    """DP-TorchMD-NET: torchmdnet/models/model.py and torchmd_et.py of
    shehzaidi/pre-training-via-denoising. Its README pre-trains with --layernorm-on-vec whitened.
    """
    weights = old_names(torchmd_net(**changed).state_dict())
    noise = old_names(vector_head().state_dict())
    weights.update({f"output_model_noise.{name}": value for name, value in noise.items()})
    weights.update(pos_normalizer())
    if whitened:
        weights["representation_model.out_norm_vec.weight"] = torch.ones(HIDDEN)
    hyper = {**HYPER, "layernorm_on_vec": "whitened" if whitened else None, **changed}
    return lightning(weights, hyper)


def frad_layout(md17: bool = True, **changed: Any) -> dict[str, Any]:
    """Frad: torchmdnet/models/torchmd_et.py and model.py of fengshikun/Frad; md17 is the form for
    forces (examples/ET-PCQM4MV2_var0.4_var2_com_re_md17.yaml of fengshikun/FradNMI), the other
    whitens vectors in every layer.
    """
    content = dp_layout()
    weights = content["state_dict"]
    if not md17:
        for layer in range(LAYERS):
            weights[f"model.representation_model.vec_norms.{layer}.weight"] = torch.ones(HIDDEN)
    content["hyper_parameters"].update(
        dataset="PCQM4MV2_Dihedral2",
        md17=md17,
        seperate_noise=False,
        dihedral_angle_noise_scale=2,
        composition=True,
        bond_length_scale=0.0,
        mask_atom=False,
        **changed,
    )
    return content


def slide_layout(**changed: Any) -> dict[str, Any]:
    """SliDe: torchmdnet/models/torchmd_etf2d_org.py (init_e, update_es, emb, wider dk_proj and
    dv_proj), model.py (a list of noise heads, output_model_ff, more normalizers) and
    examples/ET-PCQM4MV2_dih_var0.04_var2_force_mlp_md17_f2d_dev_param.yaml of fengshikun/SliDe.
    """
    content = frad_layout()
    hyper, hidden = {**content["hyper_parameters"], **changed}, HIDDEN
    rbf = hyper["num_rbf"]
    weights = {name.removeprefix("model."): value for name, value in content["state_dict"].items()}
    network = "representation_model"
    for layer in range(LAYERS):
        for name, rows in (("dk_proj", hidden), ("dv_proj", 3 * hidden)):
            key = f"{network}.attention_layers.{layer}.{name}.weight"
            weights[key] = torch.randn(rows, hidden)
        weights |= _linear(f"{network}.update_es.{layer}.lin_kj", hidden, hidden)
        weights |= _linear(f"{network}.update_es.{layer}.layers_before_skip.0.lin1", hidden, hidden)
        weights |= _linear(f"{network}.update_es.{layer}.lin_rbf1", 6, 8, bias=False)
    weights |= _linear(f"{network}.init_e.lin_rbf_0", rbf, hidden)
    weights |= _linear(f"{network}.init_e.lin", 3 * hidden, hidden)
    weights |= _linear(f"{network}.init_e.lin_rbf_1", rbf, hidden, bias=False)
    for name in ("means", "betas"):  # one module under two names
        weights[f"{network}.init_e.distance_exp.{name}"] = weights[
            f"{network}.distance_expansion.{name}"
        ]
    weights[f"{network}.emb.dist_emb.freq"] = torch.ones(6)
    for name in [name for name in weights if name.startswith("output_model_noise.")]:
        value = weights.pop(name)
        rest = name.removeprefix("output_model_noise.")
        weights[f"output_model_noise.0.{rest}"] = value
        weights[f"output_model_ff.{rest}"] = value.clone()
    for index in range(1, 5):
        head = f"output_model_noise.{index}.output_network"
        weights |= _linear(f"{head}.0", 2 * hidden, hidden) | _linear(f"{head}.2", hidden, 1)
    for name in ("bond_pos", "angle_pos", "dihedral_pos", "rotate_dihedral_pos", "reg_dev"):
        weights[f"{name}_normalizer.acc_sum"] = torch.zeros(1)
    weights |= _linear("angle_ijk_proj", 3 * hidden, 2 * hidden)
    hyper.update(model="equivariant-transformerf2d_org", dataset="PCQM4MV2_Force")
    hyper.update(use_edge_feat=True, bond_length_scale=0.058, frad_guassian_scale=0.04)
    return lightning(weights, hyper)


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, Tensor]:
    weights = {f"{name}.weight": torch.randn(outputs, inputs)}
    return weights | ({f"{name}.bias": torch.randn(outputs)} if bias else {})
