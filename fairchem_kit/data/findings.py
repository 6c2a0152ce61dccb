"""Findings of a check, per chunk of records and per split."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .statistics import Accumulator, Statistics
from .units import DEFAULT

#: findings kept per kind and chunk; further ones are only counted
KEPT = 100


@dataclass(frozen=True)
class Finding:
    """One problem: ``severity`` is ``error`` or ``warning``; ``record`` is its number in ``file``
    (None: the whole file)."""

    file: str
    record: int | None
    severity: str
    kind: str
    message: str

    def __str__(self) -> str:
        where = self.file if self.record is None else f"{self.file}: record {self.record}"
        return f"{self.severity}: {where}: {self.message}"


@dataclass
class SplitReport:
    """All findings in one split. ``counts`` counts all findings by (severity, kind), including
    those not kept; ``energy_key``, ``forces_key``: their names in the records; ``units``: of the
    labels."""

    path: str
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    statistics: Statistics | None = None
    energy_key: str = "y"
    forces_key: str = "force"
    units: dict[str, str] = field(default_factory=lambda: dict(DEFAULT))

    def add(self, finding: Finding) -> None:
        """Keep and count a finding."""
        self.findings.append(finding)
        self.counts[finding.severity, finding.kind] += 1


@dataclass
class Chunk:
    """What a worker returns for a run of records of one shard."""

    findings: list[Finding] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    accumulator: Accumulator = field(default_factory=Accumulator)
    natoms: array[int] = field(default_factory=lambda: array("q"))
    structures: array[int] = field(default_factory=lambda: array("q"))  # keys, as natoms
    identities: array[int] = field(default_factory=lambda: array("q"))  # hashes of (sid, fid)
    pbc: set[str] = field(default_factory=set)
    tagged: bool = False
    keys: Counter[str] = field(default_factory=Counter)  # labels in the records
    formulas: dict[Any, str] = field(default_factory=dict)  # sid -> number of its first record

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep the first ones of each kind."""
        key = finding.severity, finding.kind
        self.counts[key] += 1
        if self.counts[key] <= KEPT:
            self.findings.append(finding)
