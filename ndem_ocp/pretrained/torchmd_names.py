"""Names and meanings of the weights of TorchMD-NET and of methods built on it.

Names are those in the sources, without prefixes of wrappers:

    representation_model.*     torchmdnet/models/torchmd_et.py; in DP-TorchMD-NET and Frad with
                               out_norm_vec, in Frad's QM9 form with vec_norms, in SliDe with
                               init_e, emb, update_es (torchmd_etf2d.py, torchmd_etf2d_org.py)
    output_model.*             energy or property head; output_model_noise.* noise head (in SliDe's
                               pre-training a list), pos_normalizer.* moments of the noise
    mean, std, prior_model.*   normalization of the labels (torchmdnet/models/model.py)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

REPRESENTATION = "representation_model."
DP, FRAD, SLIDE, TORCHMD = "dp", "frad", "slide", "torchmd"
KINDS = ("auto", DP, FRAD, SLIDE, TORCHMD)

F2D = re.compile(r"^representation_model\.(init_e|emb|update_es)\.")
F2D_CHANGED = re.compile(r"^representation_model\.attention_layers\.\d+\.(dk|dv)_proj\.")
LAYER_NORMS = re.compile(r"^representation_model\.(vec_norms|x_norms)\.")
WHITENING = "representation_model.out_norm_vec."
_NORMALIZERS = r"^(bond_pos|angle_pos|dihedral_pos|rotate_dihedral_pos|ff|reg_dev)_normalizer\."

# Why a weight of the source is not loaded: the first pattern that matches counts.
REASONS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"^output_model_noise\.", "noise head of the pre-training; see noise_head"),
        (r"^output_model\.", "output head of the source's own target; see heads"),
        (r"^pos_normalizer\.", "moments of the pre-training noise, for the scale of noise_head"),
        (_NORMALIZERS, "moments of other pre-training targets"),
        (r"^(output_model_\w+|angle_ijk_proj|dihedral_jk_proj)\.", "head of pre-training only"),
        (r"^d?(mean|std)$", "normalization of the source's labels; this run has its own"),
        (r"^prior_model\.", "prior of the source's own labels"),
        (r"^representation_model\.distance\.", "neighbour search; this model uses fairchem's"),
        (
            r"^representation_model\.out_norm_vec\.",
            "whitening of the vectors after the last layer; this model has no such module",
        ),
        (LAYER_NORMS.pattern, "normalization inside the layers; this model has no such module"),
        (F2D.pattern, "edge network of SliDe (f2d); this model has no such module"),
    )
)


def renamed(name: str) -> str:
    """Current torchmd-net name of an output module's weight (renamed in its pull request 314)."""
    name = re.sub(r"(output_network\.\d+\.update_net)\.(\d+)\.", r"\1.layers.\2.", name)
    return re.sub(r"(output_network)\.(\d+)\.(weight|bias)$", r"\1.layers.\2.\3", name)


def reason_of(name: str) -> str | None:
    """Why this weight is not loaded; None for an unknown weight."""
    return next((reason for pattern, reason in REASONS if pattern.match(name)), None)


def possible_kinds(names: list[str], hyper: dict[str, Any]) -> tuple[str, ...]:
    """Possible kinds of a checkpoint, the most likely first.

    DP-TorchMD-NET, Frad (MD17 form) and TorchMD-NET share one network: without hyper-parameters
    their files look the same.
    """
    network = str(hyper.get("model", ""))
    if "f2d" in network or any(F2D.match(name) for name in names):
        return (SLIDE,)
    if any(LAYER_NORMS.match(name) for name in names):
        return (FRAD,)
    if "md17" in hyper or "seperate_noise" in hyper:  # the sources' own spelling
        return (FRAD, DP)
    if any(name.startswith(("output_model_noise.", "pos_normalizer.")) for name in names):
        return (DP, FRAD)
    return (TORCHMD, DP, FRAD)


@dataclass(frozen=True)
class Setting:
    """A hyper-parameter that changes the meaning of the weights."""

    source: str  # its name in a checkpoint's hyper_parameters
    yaml: str  # under model.backbone
    of: Callable[[nn.Module], Any]  # reads its value from a network of torchmd-net
    absent: Any = None  # the value if it is not in the checkpoint; None: unknown
    harmless: bool = False  # a difference changes neither the network's function nor its weights


def _attribute(name: str) -> Callable[[nn.Module], Any]:
    return lambda network: getattr(network, name)


_SHARED = (
    Setting("embedding_dimension", "hidden_channels", _attribute("hidden_channels")),
    Setting("num_layers", "num_layers", _attribute("num_layers")),
    Setting("num_rbf", "num_rbf", _attribute("num_rbf")),
    Setting("rbf_type", "rbf_type", _attribute("rbf_type")),
    Setting(
        "trainable_rbf",
        "trainable_rbf",
        lambda network: network.distance_expansion.trainable,
        harmless=True,
    ),
    Setting("activation", "activation", _attribute("activation")),
    Setting("cutoff_lower", "cutoff_lower", _attribute("cutoff_lower")),
    Setting("cutoff_upper", "cutoff", _attribute("cutoff_upper")),
)
# Keys are values of "model" in a checkpoint's hyper_parameters; SliDe's networks derive from the
# ET.
SETTINGS: dict[str, tuple[Setting, ...]] = {
    "equivariant-transformer": (
        *_SHARED,
        Setting("max_z", "max_z", _attribute("max_z")),
        Setting("num_heads", "num_heads", _attribute("num_heads")),
        Setting("attn_activation", "attn_activation", _attribute("attn_activation")),
        Setting(
            "neighbor_embedding",
            "neighbor_embedding",
            lambda network: network.neighbor_embedding is not None,
        ),
        Setting("distance_influence", "distance_influence", _attribute("distance_influence")),
        Setting(
            "vector_cutoff",
            "vector_cutoff",
            lambda network: any(layer.vector_cutoff for layer in network.attention_layers),
            absent=False,
        ),
    ),
    "tensornet": (
        *_SHARED,
        Setting("max_z", "max_z", lambda network: network.tensor_embedding.max_z),
        Setting(
            "equivariance_invariance_group",
            "equivariance_invariance_group",
            _attribute("equivariance_invariance_group"),
        ),
    ),
}
_NETWORKS = {"TorchMD_ET": "equivariant-transformer", "TensorNet": "tensornet"}


def network_of(module: nn.Module) -> str | None:
    """torchmd-net's name of a representation model; None for any other module."""
    return _NETWORKS.get(type(module).__name__)


@dataclass(frozen=True)
class Compared:
    """A hyper-parameter in the checkpoint and in the model."""

    setting: Setting
    source: Any
    target: Any

    @property
    def unknown(self) -> bool:
        return self.source is None

    @property
    def same(self) -> bool:
        numbers = [
            isinstance(value, (int, float)) and not isinstance(value, bool)
            for value in (self.source, self.target)
        ]
        if all(numbers):
            return math.isclose(self.source, self.target, rel_tol=1e-6, abs_tol=1e-9)
        return self.source == self.target

    @property
    def differs(self) -> bool:
        """Whether the weights have different meanings in checkpoint and model."""
        return not (self.unknown or self.same or self.setting.harmless)


def compare(hyper: dict[str, Any], network: nn.Module) -> list[Compared]:
    """Compare all hyper-parameters that change the meaning of the weights."""
    return [
        Compared(
            setting,
            hyper.get(setting.source, setting.absent if hyper else None),
            setting.of(network),
        )
        for setting in SETTINGS[network_of(network)]
    ]


def matching_yaml(compared: list[Compared]) -> str:
    """The backbone section that matches the checkpoint."""
    lines = [
        f"    {item.setting.yaml}: {item.target if item.unknown else item.source}"
        for item in compared
    ]
    return "\n".join(["model:", "  backbone:", *lines])
