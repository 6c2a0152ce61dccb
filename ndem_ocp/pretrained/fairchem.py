"""Start from weights saved by fairchem or this package, with any backbone.

Weights are matched by name, without the prefixes of DDP. In older single-class models
(``equiformer_v2``) the names of backbone and heads lack ``backbone.`` and ``output_heads.NAME.``. A
head is loaded completely or not at all.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import Tensor, nn

from fairchem_kit.checkpoints.ema import averaged
from fairchem_kit.words import counted
from ndem_ocp.models.two_view import AUXILIARY_OUTPUT
from ndem_ocp.pretrained.compare import normalizer_differences, settings_differences
from ndem_ocp.pretrained.file import PretrainedError
from ndem_ocp.pretrained.report import LoadReport

KIND = "fairchem"
WEIGHTS = ("auto", "ema", "raw")
AUTO, NONE = "auto", "none"
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")


@dataclass(frozen=True)
class Run:
    """Configuration and normalizers of a new run, for comparison. Both are optional."""

    config: Mapping[str, Any] = field(default_factory=dict)
    normalizers: Mapping[str, nn.Module] = field(default_factory=dict)


def is_fairchem(content: Any) -> bool:
    """Whether the content of a file is a checkpoint of a fairchem trainer."""
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        return False
    ours = any(
        _PREFIXES.sub("", str(name)).startswith(("backbone.", "output_heads."))
        for name in content["state_dict"]
    )
    return isinstance(content.get("config"), Mapping) or (
        ours and "hyper_parameters" not in content
    )


def load_fairchem(
    model: nn.Module,
    path: Path,
    content: Any,
    *,
    heads: str = AUTO,
    noise_head: bool = False,
    weights: str = AUTO,
    strict: bool = True,
    run: Run | None = None,
) -> LoadReport:
    """Load a fairchem checkpoint into a new model; the model is unchanged if this is refused.

    Args:
        model: the model of the new run, not wrapped in DDP.
        path: the file. content: its content.
        heads: "auto" (every head that is in the file with the same shapes), "none", or the name of
            one head.
        noise_head: whether to refuse a file without the model's auxiliary head.
        weights: "ema", "raw", or "auto": the moving average if there is one.
        strict: whether to refuse a backbone that differs from the one in the file, or a head with
            the same name but other shapes. False loads what fits and reports the rest.
        run: configuration and normalizers of the new run, to compare with those in the file.

    Raises:
        PretrainedError: if the load is refused; the model is unchanged.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise PretrainedError(
            f"{path} is not a checkpoint of fairchem: it has no state_dict. Leave kind at auto."
        )
    plan = _Plan(model, path, content, run or Run())
    plan.choose_heads(heads)
    plan.map_weights()
    plan.check_backbone()
    plan.check_heads(noise_head)
    plan.take(weights)
    plan.compare_settings()
    plan.compare_normalizers()
    plan.account_for_the_rest()
    refusal = plan.report.refusal(strict)
    if refusal is not None:
        raise PretrainedError(f"{path}: {refusal}")
    plan.carry_out()
    return plan.report


class _Plan:
    """A mapping of weights; nothing is loaded before :meth:`carry_out`."""

    def __init__(self, model: nn.Module, path: Path, content: Mapping[str, Any], run: Run) -> None:
        self.model, self.content, self.run = model, content, run
        self.target = model.state_dict()
        self.report = LoadReport(path, KIND)
        self.source = {
            _PREFIXES.sub("", name): value
            for name, value in content["state_dict"].items()
            if isinstance(value, Tensor)
        }
        self.values: dict[str, Tensor] = {}
        self.loud: list[str] = []
        own = ("backbone.", "output_heads.")
        self.single_class = not any(name.startswith(own) for name in self.source)

    def choose_heads(self, heads: str) -> None:
        known = list(getattr(self.model, "output_heads", {}))
        if heads not in (AUTO, NONE) and heads not in known:
            raise PretrainedError(
                f"task.init_from.heads: {heads!r} is not a head of the model (heads: "
                f"{', '.join(known) or NONE})."
            )
        self.heads = known if heads == AUTO else [name for name in known if name == heads]
        self.asked = heads not in (AUTO, NONE)

    def map_weights(self) -> None:
        """Match weights by name and shape; heads completely or not at all."""
        fresh = {head: self._unfit(head) for head in self.heads}
        for name, value in self.target.items():
            head = _head_of(name)
            if head is not None and head not in self.heads:
                self.report.missing[name] = f"head {head} was not requested (heads)"
            elif head is not None and fresh[head]:
                self.report.missing[name] = fresh[head]
            else:
                self._map(name, value)

    def _unfit(self, head: str) -> str:
        """Why a head starts from random weights; empty if all its weights are in the file."""
        names = [name for name in self.target if _head_of(name) == head]
        theirs = {name: self._name_in_file(name) for name in names}
        if not any(theirs.values()):
            return f"head {head} is not in the checkpoint"
        trained = {name for name, _ in self.model.named_parameters()}
        for name in names:
            if theirs[name] is None:
                if name in trained:
                    return f"head {head} is a different head in the checkpoint"
            elif self.source[theirs[name]].shape != self.target[name].shape:
                self._note_shapes(theirs[name], name)
                return f"head {head} has different shapes in the checkpoint"
        return ""

    def _name_in_file(self, name: str) -> str | None:
        head = _head_of(name)
        plain = name.removeprefix(f"output_heads.{head}.") if head else name
        plain = plain.removeprefix("backbone.")
        for candidate in (name, plain) if self.single_class else (name,):
            if candidate in self.source:
                return candidate
        return None

    def _map(self, name: str, value: Tensor) -> None:
        report, theirs = self.report, self._name_in_file(name)
        if theirs is None:
            report.missing[name] = "not in the checkpoint"
        elif self.source[theirs].shape != value.shape:
            report.missing[name] = "its shape differs"
            self._note_shapes(theirs, name)
        else:
            report.loaded[name] = theirs

    def _note_shapes(self, theirs: str, name: str) -> None:
        self.report.ignored[theirs] = "its shape differs"
        shapes = (tuple(self.source[theirs].shape), tuple(self.target[name].shape))
        self.report.shapes.append((theirs, shapes[0], name, shapes[1]))

    def check_backbone(self) -> None:
        report = self.report
        trained = {name for name, _ in self.model.named_parameters() if _head_of(name) is None}
        loaded = trained & set(report.loaded)
        if not loaded:
            report.impossible.append(
                "No weight of the checkpoint fits the backbone. Its names begin like this: "
                f"{', '.join(list(self.source)[:4])}."
            )
        elif loaded != trained:
            report.problems.append(
                f"Only {len(loaded)} of the backbone's {counted(len(trained), 'weight')} are in "
                "the file with the same shape."
            )
        used = set(report.loaded.values()) | set(report.ignored)
        left = [n for n in self.source if n.startswith("backbone.") and n not in used]
        if left:
            report.problems.append(
                f"The checkpoint's backbone has weights that this model does not have: "
                f"{', '.join(left[:3])}{f' and {len(left) - 3} more' if len(left) > 3 else ''}."
            )

    def check_heads(self, noise_head: bool) -> None:
        report = self.report
        for head in self.heads:
            reasons = {
                reason for name, reason in report.missing.items() if _head_of(name) == head
            } - {"not in the checkpoint"}
            for reason in sorted(reasons):
                wanted = self.asked or (noise_head and head == AUXILIARY_OUTPUT)
                if head == AUXILIARY_OUTPUT and not wanted:
                    report.notes.append(f"The auxiliary head starts from random weights: {reason}.")
                elif wanted or "is not in" not in reason:
                    report.problems.append(
                        f"{reason[0].upper()}{reason[1:]}. task.init_from.heads: none loads the "
                        "backbone alone."
                    )
                else:
                    report.notes.append(
                        f"{reason[0].upper()}{reason[1:]}: it starts from random weights."
                    )
        if noise_head and AUXILIARY_OUTPUT not in self.heads:
            report.problems.append(
                f"noise_head: the model has no auxiliary head ({AUXILIARY_OUTPUT}), or "
                "task.init_from.heads excludes it. It needs coefficient > 0 and head: separate."
            )

    def take(self, weights: str) -> None:
        """Choose the weights of the moving average or those of the last step."""
        report, content = self.report, self.content
        source = dict(self.source)
        ema = content.get("ema")
        if content.get("weights") == "ema":
            kind = "the moving average, the only weights in the file"
            if weights == "raw":
                report.impossible.append(
                    "weights: raw, but this file (a best checkpoint) only has the moving average. "
                    "Use weights: auto, or a checkpoint of the run's last steps."
                )
        elif weights == "raw" or not isinstance(ema, Mapping) or "shadow_params" not in ema:
            kind = "raw"
            if weights == "ema":
                report.impossible.append(
                    "weights: ema, but the file has no separate moving average (in a best "
                    "checkpoint of fairchem it replaces the raw weights). Use weights: auto."
                )
            elif weights == AUTO:
                kind = "the only ones in the file (in a best checkpoint of fairchem, the average)"
        else:
            ours = {theirs: name for name, theirs in report.loaded.items()}
            found = averaged(content, self.source, ours, self.model)
            kind = "the moving average"
            if isinstance(found, str):
                kind = f"raw, because the moving average is unusable: {found}"
                if weights == "ema":
                    report.impossible.append(f"weights: ema is not possible: {found}.")
                self.loud.append(f"task.init_from uses the raw weights: {found}.")
            else:
                source |= {n: v for n, v in found.items() if n in source}
        report.notes.append(f"Weights: {kind}.")
        for name, theirs in report.loaded.items():
            if not torch.isfinite(source[theirs]).all():
                report.impossible.append(f"{theirs} has values that are not finite.")
            self.values[name] = source[theirs]

    def compare_settings(self) -> None:
        """Compare the backbone's settings with those in the file.

        Weights of equal shapes can have different meanings.
        """
        problems, notes = settings_differences(self.content.get("config"), self.run.config)
        self.report.problems += problems
        self.report.notes += notes

    def compare_normalizers(self) -> None:
        """Warn if the run's normalised units differ from the file's."""
        given = self.content.get("normalizers")
        if not isinstance(given, Mapping):
            return
        self.loud += normalizer_differences(given, self.run.normalizers)
        if self.content.get("elementrefs"):
            names = ", ".join(self.content["elementrefs"])
            self.report.notes.append(f"The checkpoint has element references for {names}.")

    def account_for_the_rest(self) -> None:
        report = self.report
        used = set(report.loaded.values()) | set(report.ignored)
        for name in self.source:
            if name not in used:
                head = _head_of(name)
                report.ignored[name] = f"head {head}" if head else "not in this model"
        report.notes += self.loud
        if "optimizer" in self.content:
            step = self.content.get("step")
            report.notes.append(
                f"The file is at step {step}; this run starts at step 0 with a new optimizer and "
                "schedule. To continue that run instead, use --checkpoint or task.resume."
            )
        folder = (self.run.config.get("cmd") or {}).get("checkpoint_dir")
        if folder and report.path.resolve().parent == Path(folder).resolve():
            self.loud.append(
                f"task.init_from = {report.path} is a checkpoint of this same run. init_from "
                "starts a new run from its weights; to continue it use --checkpoint or task.resume."
            )

    def carry_out(self) -> None:
        if distutils.is_master():
            for sentence in self.loud:
                logging.warning(sentence)
        with torch.no_grad():
            for name, value in self.values.items():
                self.target[name].copy_(value)


def _head_of(name: str) -> str | None:
    return name.split(".")[1] if name.startswith("output_heads.") else None
