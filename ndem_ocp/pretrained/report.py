"""The report that is printed when a pre-trained checkpoint is loaded."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ndem_ocp.pretrained.torchmd_names import Compared, matching_yaml

SHOWN = 3  # longer lists of names are shortened to common beginnings and counts


@dataclass
class LoadReport:
    """How a checkpoint's weights were mapped onto a model; ``str()`` gives a printable report.

    Attributes:
        path: the checkpoint.
        kind: "fairchem", "dp", "frad", "slide" or "torchmd".
        loaded: name in the model -> name in the checkpoint.
        missing: weight of the model that was not loaded -> reason.
        ignored: weight of the checkpoint that was not used -> reason.
        shapes: differing shapes: (name in the checkpoint, shape, name in the model, shape).
        hyper_parameters: those that change the meaning of weights, of checkpoint and model.
        notes: remarks, and settings that should be changed elsewhere.
        problems: reasons to refuse with ``strict``.
        impossible: reasons to refuse in any case.
    """

    path: Path
    kind: str
    loaded: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    shapes: list[tuple[str, tuple[int, ...], str, tuple[int, ...]]] = field(default_factory=list)
    hyper_parameters: list[Compared] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    impossible: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        problems = _section("problems", [*self.impossible, *self.problems])
        return "\n".join([*self._lines(), *problems])

    def _lines(self) -> list[str]:
        groups: dict[str, list[str]] = {}
        for name in self.loaded:
            groups.setdefault(_module_of(name), []).append(name)
        lines = [f"Pre-trained weights from {self.path} (kind: {self.kind})"]
        lines += [f"  mapped into {group}: {len(names)}" for group, names in groups.items()]
        lines += _section("not loaded", _by_reason(self.missing))
        lines += _section(
            "different shapes (checkpoint, model)",
            [
                f"{theirs} {list(shape)}, {ours} {list(other)}"
                for theirs, shape, ours, other in self.shapes
            ],
        )
        lines += _section("not used", _by_reason(self.ignored))
        lines += _section("hyper-parameters (checkpoint, model)", self._compared())
        return lines + _section("notes", self.notes)

    def refusal(self, strict: bool) -> str | None:
        """Why nothing was loaded and what to do; None if nothing was refused."""
        reasons = self.impossible + (self.problems if strict else [])
        if not reasons:
            return None
        lines = ["Nothing was loaded:", *(f"- {reason}" for reason in reasons)]
        if any(item.differs for item in self.hyper_parameters):
            lines += ["The backbone that would match:", matching_yaml(self.hyper_parameters)]
        if not self.impossible:
            lines += [
                "task.init_from.strict: False (strict=False) loads what has the same name and "
                "shape anyway, and lists the rest."
            ]
        return "\n".join([*lines, "", *self._lines()])

    def _compared(self) -> list[str]:
        if self.hyper_parameters and all(item.source is None for item in self.hyper_parameters):
            return ["none in the checkpoint, so only shapes could be compared"]
        same = [
            f"{item.setting.source} {item.source}" for item in self.hyper_parameters if item.same
        ]
        other = [
            f"{item.setting.source}: not in the checkpoint, {item.target}"
            if item.unknown
            else f"{item.setting.source}: {item.source}, {item.target}"
            + (" (makes no difference)" if item.setting.harmless else "")
            for item in self.hyper_parameters
            if not item.same
        ]
        return other + ([f"the same: {', '.join(same)}"] if same else [])


def _module_of(name: str) -> str:
    for end in ("representation_model.", "output_model."):
        if end in name:
            return name.partition(end)[0] + end[:-1]
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] == "output_heads" else 1])


def _section(title: str, lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    return [f"  {title}:", *(f"    {line}" for line in lines)] if lines else []


def _by_reason(names: dict[str, str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for name, reason in names.items():
        groups.setdefault(reason, []).append(name)
    return [f"{reason}: {_listed(group)}" for reason, group in groups.items()]


def _listed(names: list[str]) -> str:
    if len(names) <= SHOWN:
        return ", ".join(names)
    parts = list(zip(*(name.split(".") for name in names)))
    shared = [part[0] for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts)]
    begins = [".".join(shared)] if shared else dict.fromkeys(parts[0])
    return f"{', '.join(f'{begin}.*' for begin in begins)} ({len(names)})"
