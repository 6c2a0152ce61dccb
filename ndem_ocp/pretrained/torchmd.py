"""Start from weights of TorchMD-NET, DP-TorchMD-NET, Frad or SliDe, on a TorchMD-NET backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairchem_kit.words import counted
from ndem_ocp.models.two_view import AUXILIARY_OUTPUT
from ndem_ocp.pretrained import heads as heads_of
from ndem_ocp.pretrained import torchmd_names
from ndem_ocp.pretrained.fairchem import AUTO, NONE
from ndem_ocp.pretrained.file import PretrainedError, SourceCheckpoint, source_of
from ndem_ocp.pretrained.report import LoadReport

_OURS = "backbone.representation_model."


def load_torchmd(
    model: nn.Module,
    path: Path,
    content: Any,
    *,
    kind: str = AUTO,
    heads: str = NONE,
    noise_head: bool = False,
    noise_gain: float | None = None,
    strict: bool = True,
) -> LoadReport:
    """Load such a checkpoint into a new model; the model is unchanged if this is refused.

    The arguments are those of :func:`ndem_ocp.pretrained.load_pretrained`; ``content`` is that of
    the file.

    Raises:
        PretrainedError: if the load is refused, or the model has another backbone.
    """
    network = _network_of(model)
    source = source_of(content, path)
    plan = _Plan(model, network, source)
    plan.check_source(kind)
    plan.map_representation()
    if heads != NONE:
        plan.map_output_head(heads)
    if noise_head:
        plan.map_noise_head(noise_gain)
    plan.account_for_the_rest()
    refusal = plan.report.refusal(strict)
    if refusal is not None:
        raise PretrainedError(f"{source.path}: {refusal}")
    plan.carry_out()
    return plan.report


def _network_of(model: nn.Module) -> nn.Module:
    network = getattr(getattr(model, "backbone", None), "representation_model", None)
    if network is None or torchmd_names.network_of(network) is None:
        raise PretrainedError(
            "task.init_from needs a TorchMD-NET backbone (torchmd_et_backbone or "
            "torchmd_tensornet_backbone) for all checkpoints except fairchem's. This backbone is "
            f"{type(getattr(model, 'backbone', model)).__name__}."
        )
    return network


class _Plan:
    """A mapping of weights; nothing is loaded before :meth:`carry_out`."""

    def __init__(self, model: nn.Module, network: nn.Module, source: SourceCheckpoint) -> None:
        self.model, self.network, self.source = model, network, source
        self.target = model.state_dict()
        self.values: dict[str, Tensor] = {}
        self.kinds = torchmd_names.possible_kinds(list(source.weights), source.hyper_parameters)
        self.report = LoadReport(source.path, self.kinds[0])

    def check_source(self, kind: str) -> None:
        report, hyper = self.report, self.source.hyper_parameters
        if any(name.startswith(("backbone.", "output_heads.")) for name in self.source.weights):
            raise PretrainedError(
                f"{self.source.path} is a checkpoint of fairchem: leave task.init_from.kind at "
                "auto or set it to fairchem; to continue or evaluate its run use --checkpoint."
            )
        if kind != "auto":
            report.kind = kind
            if kind not in self.kinds:
                report.impossible.append(
                    f"kind: {kind}, but the file looks like {' or '.join(self.kinds)}."
                )
        ours, theirs = torchmd_names.network_of(self.network), hyper.get("model")
        if theirs is not None and theirs != ours and torchmd_names.SLIDE not in self.kinds:
            report.impossible.append(f"The checkpoint's network is {theirs}, the model's {ours}.")
            return
        if ours == "tensornet" and "check_errors" in hyper:
            report.impossible.append(
                "The checkpoint is from a torchmd-net whose TensorNet orders its features "
                "differently: load it with torchmd-net's load_model and save it again."
            )
        report.hyper_parameters = torchmd_names.compare(hyper, self.network)
        for item in report.hyper_parameters:
            if item.differs:
                report.problems.append(
                    f"{item.setting.source}: {item.source} in the checkpoint, {item.target} in "
                    f"the model (model.backbone.{item.setting.yaml})."
                )
        report.problems += self._other_architecture()

    def _other_architecture(self) -> list[str]:
        names, problems = list(self.source.weights), []
        if torchmd_names.SLIDE in self.kinds:
            problems.append(
                "The attention layers of SliDe's network (f2d) use edge features that are updated "
                "from bond lengths, angles and torsions. TorchMD-NET has no such features: its "
                "dk_proj and dv_proj would stay untrained, and the other weights were trained "
                "with other inputs. This would be a partial start, not SliDe."
            )
        elif any(torchmd_names.LAYER_NORMS.match(name) for name in names):
            problems.append(
                "This is Frad's network for QM9 (md17: false): it normalizes scalars and whitens "
                "vectors inside every layer, which TorchMD-NET does not. Frad's MD17 form "
                "(md17: true) is TorchMD-NET's network."
            )
        unknown = [
            name
            for name in names
            if name.startswith(torchmd_names.REPRESENTATION)
            and torchmd_names.reason_of(name) is None
            and _ours(name) not in self.target
        ]
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            problems.append(
                f"The checkpoint's network has weights that this model does not have: "
                f"{', '.join(unknown[:3])}{more}."
            )
        if f"{torchmd_names.WHITENING}weight" in names:
            self.report.notes.append(
                "The source's heads used whitened vectors of the last layer (out_norm_vec); heads "
                "here use them unchanged. Layers and scalars are not affected."
            )
        return problems

    def map_representation(self) -> None:
        report = self.report
        for name in self.target:
            if not name.startswith(_OURS):
                continue
            theirs = torchmd_names.REPRESENTATION + name.removeprefix(_OURS)
            if torchmd_names.SLIDE in self.kinds and torchmd_names.F2D_CHANGED.match(theirs):
                report.missing[name] = "takes SliDe's edge features in the checkpoint"
                report.ignored[theirs] = "takes SliDe's edge features, not the radial basis"
            else:
                self._map(theirs, name)
        total = sum(name.startswith(_OURS) for name in self.target)
        if not report.loaded:
            report.impossible.append(
                "No weight of the checkpoint fits the backbone. Its names begin like this: "
                f"{', '.join(list(self.source.weights)[:4])}."
            )
        elif len(report.loaded) < total:
            report.problems.append(
                f"Only {len(report.loaded)} of the backbone's {counted(total, 'weight')} are in "
                "the file with the same shape."
            )
        self._check_radial_basis()

    def _check_radial_basis(self) -> None:
        """Compare fixed radial functions by their values, which depend on cutoff and rbf_type."""
        trainable = self.source.hyper_parameters.get("trainable_rbf")
        known = any(item.differs for item in self.report.hyper_parameters)
        if trainable or known or self.network.distance_expansion.trainable:
            return
        for name, value in self.values.items():
            own = self.target[name].double().cpu()
            if "distance_expansion" in name and not torch.allclose(value.double(), own, rtol=1e-4):
                self.report.problems.append(
                    f"{self.report.loaded[name]} is not what the model's cutoff and rbf_type give: "
                    "the radial functions differ."
                )
                return

    def map_output_head(self, head: str) -> None:
        found = heads_of.output_module(self.model, head)
        if found is None:
            known = [name for name in self.model.output_heads if name != AUXILIARY_OUTPUT]
            raise PretrainedError(
                f"task.init_from.heads: {head!r} is not a head of the model with an output module "
                f"of torchmd-net (heads: {', '.join(known) or NONE})."
            )
        prefix, module = found
        theirs = {torchmd_names.renamed(name): name for name in self.source.weights}
        for name in heads_of.head_weights(module, prefix):
            plain = f"output_model.{name.removeprefix(f'{prefix}.')}"
            self._map(theirs.get(plain, plain), name)
        self._require(f"heads: {head}", prefix)
        self.report.problems += heads_of.energy_problems(self.source, head, module)
        note = heads_of.energy_note(self.source)
        self.report.notes += [note] if note else []

    def map_noise_head(self, noise_gain: float | None) -> None:
        prefix, module = heads_of.output_module(self.model, AUXILIARY_OUTPUT) or ("", None)
        self.report.problems += heads_of.noise_problems(self.source, module, noise_gain)
        if module is None:
            return
        theirs = heads_of.noise_head_names(self.source)
        for name in heads_of.head_weights(module, prefix):
            plain = name.removeprefix(f"{prefix}.")
            last = plain == heads_of.LAST_PROJECTION
            self._map(
                theirs.get(plain, f"{heads_of.NOISE_HEAD}{plain}"),
                name,
                (lambda weight: heads_of.scaled(weight, self.source, noise_gain)) if last else None,
            )
        self._require("noise_head", prefix)
        std = heads_of.noise_std(self.source)
        if std is not None and noise_gain is not None:
            self.report.notes.append(
                f"The noise head predicted + noise / {std:.4g} A; rescaled as auxiliary head it "
                f"predicts {noise_gain:+.4g} / A * noise."
            )

    def _require(self, what: str, prefix: str) -> None:
        names = [name for name in self.report.missing if name.startswith(f"{prefix}.")]
        if names:
            self.report.problems.append(
                f"{what}: {len(names)} of its weights are not in the file with the same shape."
            )

    def _map(
        self, theirs: str, ours: str, change: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        report, value = self.report, self.source.weights.get(theirs)
        if value is None:
            report.missing[ours] = "not in the checkpoint"
        elif value.shape != self.target[ours].shape:
            report.missing[ours] = "its shape differs"
            report.ignored[theirs] = "its shape differs"
            report.shapes.append((theirs, tuple(value.shape), ours, tuple(self.target[ours].shape)))
        elif not torch.isfinite(value).all():
            report.impossible.append(f"{theirs} has values that are not finite.")
        else:
            self.values[ours] = value if change is None else change(value)
            report.loaded[ours] = theirs

    def account_for_the_rest(self) -> None:
        used = set(self.report.loaded.values()) | set(self.report.ignored)
        for name in self.source.weights:
            if name not in used:
                self.report.ignored[name] = torchmd_names.reason_of(name) or "unknown"

    def carry_out(self) -> None:
        with torch.no_grad():
            for name, value in self.values.items():
                self.target[name].copy_(value)


def _ours(theirs: str) -> str:
    return _OURS + theirs.removeprefix(torchmd_names.REPRESENTATION)
