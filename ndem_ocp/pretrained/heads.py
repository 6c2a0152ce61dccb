"""Load heads from a pre-trained checkpoint: the energy head, and the noise head, rescaled."""

from __future__ import annotations

import math
import re

from torch import Tensor, nn

from ndem_ocp.models.two_view import AUXILIARY_OUTPUT
from ndem_ocp.pretrained.file import SourceCheckpoint
from ndem_ocp.pretrained.torchmd_names import WHITENING, renamed

NOISE_HEAD = "output_model_noise."
# The output of EquivariantVectorOutput is linear in this weight only, without a bias.
LAST_PROJECTION = "output_network.1.vec2_proj.weight"
_SAME_SUM = {"add": "sum"}  # renamed in torchmd-net


def output_module(model: nn.Module, head: str) -> tuple[str, nn.Module] | None:
    """(name, module) of the torchmd-net output module in a head; None if there is none."""
    if head not in model.output_heads:
        return None
    found = [
        (name, module)
        for name, module in model.output_heads[head].named_modules()
        if name.rpartition(".")[2] == "output_model"
    ]
    return (f"output_heads.{head}.{found[0][0]}", found[0][1]) if len(found) == 1 else None


def head_weights(module: nn.Module, name: str) -> list[str]:
    """Names of the weights of an output module in the model, except its table of masses."""
    return [f"{name}.{key}" for key in module.state_dict() if key != "atomic_mass"]


def energy_problems(source: SourceCheckpoint, head: str, module: nn.Module) -> list[str]:
    """Why the source's output head cannot be loaded into this head, even if all shapes agree."""
    hyper, problems = source.hyper_parameters, []
    theirs, ours = hyper.get("output_model"), type(module).__name__
    if theirs is not None and ours not in (theirs, f"Equivariant{theirs}"):
        problems.append(f"heads: {head} is a {ours}; the checkpoint's output head is a {theirs}.")
    if f"{WHITENING}weight" in source.weights and not hyper.get("seperate_noise"):
        problems.append(
            "The checkpoint's output head was trained on whitened vectors (out_norm_vec), which "
            "this model does not have: use heads: none and train the head from scratch."
        )
    untrained = hyper.get("denoising_only") or hyper.get("energy_weight", 1.0) == 0
    if untrained and not hyper.get("derivative"):
        problems.append(
            "The checkpoint's output head was never trained (denoising_only or energy_weight: 0): "
            "use heads: none."
        )
    reduce_op = hyper.get("reduce_op")
    if reduce_op is not None and _SAME_SUM.get(reduce_op, reduce_op) != module.reduce_op:
        problems.append(
            f"The checkpoint's output head takes the {reduce_op} over atoms, heads: {head} the "
            f"{module.reduce_op}."
        )
    if any(name.startswith("prior_model.") for name in source.weights):
        problems.append(
            "The checkpoint's output head was trained on labels minus a prior (such as atomic "
            "reference energies), but this model has no prior."
        )
    return problems


def energy_note(source: SourceCheckpoint) -> str | None:
    """How to convert the head's output to an energy."""
    if "mean" not in source.weights or "std" not in source.weights:
        return None
    mean, std = source.weights["mean"].flatten().tolist(), source.weights["std"].flatten().tolist()
    if len(mean) != 1 or len(std) != 1:
        return None
    return (
        f"The loaded output head gives (label - mean) / std with mean {mean[0]:g} and std "
        f"{std[0]:g}, in the source's unit: the energy normalizer of this run "
        "(dataset.train.transforms.normalizer) should have these values, converted."
    )


def noise_head_names(source: SourceCheckpoint) -> dict[str, str]:
    """Name within EquivariantVectorOutput -> name in the checkpoint, of the coordinate-noise head.

    SliDe's pre-training has several noise heads; the equivariant one is for coordinates.
    """
    names = [name for name in source.weights if name.startswith(NOISE_HEAD)]
    marker = re.compile(rf"^{re.escape(NOISE_HEAD)}(\d+\.)?output_network\.0\.vec1_proj\.weight$")
    found = next((match for match in map(marker.match, names) if match), None)
    if found is None:
        return {}
    prefix = NOISE_HEAD + (found.group(1) or "")
    return {renamed(name.removeprefix(prefix)): name for name in names if name.startswith(prefix)}


def noise_std(source: SourceCheckpoint) -> float | None:
    """Standard deviation (Angstrom) by which pre-training divided the noise; None if not saved."""
    sums = [
        source.weights.get(f"pos_normalizer.{name}")
        for name in ("acc_sum", "acc_squared_sum", "acc_count")
    ]
    if any(value is None for value in sums):
        return None
    total, squared, count = (value.double() for value in sums)
    if count.item() < 1:
        return None
    # the same for all three axes, as the head is equivariant
    variance = (squared / count - (total / count).square()).mean().item()
    return math.sqrt(variance) if math.isfinite(variance) and variance > 0 else None


def noise_problems(
    source: SourceCheckpoint, module: nn.Module | None, noise_gain: float | None
) -> list[str]:
    """Why the pre-trained noise head cannot be used as the auxiliary head."""
    if module is None:
        return [
            f"noise_head: the model has no auxiliary head ({AUXILIARY_OUTPUT}) with an output "
            "module of torchmd-net. It needs coefficient > 0 and head: separate."
        ]
    problems = []
    if type(module).__name__ != "EquivariantVectorOutput":
        problems.append(
            f"noise_head: the auxiliary head is a {type(module).__name__}, but the checkpoint's "
            "noise head is an EquivariantVectorOutput."
        )
    if not noise_head_names(source):
        problems.append("noise_head: the checkpoint has no noise head for coordinates.")
    if f"{WHITENING}weight" in source.weights:
        problems.append(
            "noise_head: the checkpoint's noise head was trained on whitened vectors "
            "(layernorm_on_vec: whitened or seperate_noise: true), which this model does not "
            "have; without the whitening its direction and scale are wrong. Use noise_head: False."
        )
    if noise_std(source) is None:
        problems.append(
            "noise_head: the checkpoint has no usable pos_normalizer, so the scale of its noise "
            "head is not known."
        )
    if noise_gain is None:
        problems.append(
            "noise_head: noise_gain is missing. It is the auxiliary head's output per Angstrom of "
            "noise (for NDeM -1/sigma_max)."
        )
    return problems


def scaled(weight: Tensor, source: SourceCheckpoint, noise_gain: float | None) -> Tensor:
    """The noise head's last projection, rescaled so that the output is noise_gain * noise.

    It was pre-trained to predict + noise / std, where noise = (noisy - clean positions). Without a
    known std or noise_gain it is returned unchanged.
    """
    std = noise_std(source)
    return weight if std is None or noise_gain is None else weight * (std * noise_gain)
