"""Every choice that NDeM and its relatives leave open, as one validated, immutable record.

The YAML key of each field is ``task.ndem.<field>``. A field's comment says what it does, in which
equation or section of the paper it stands, and whether its default is the paper's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ndem_ocp.errors import NDeMError

CHOICES: dict[str, tuple[Any, ...]] = {
    "objective": ("ndem", "noisy_nodes", "dens"),
    "sigma_per": ("batch", "graph"),
    "sigma_distribution": ("uniform", "log_uniform", "fixed"),
    "atoms": ("free", "all"),
    "norm": ("squared_l2", "l2mae"),
    "clean_forces": ("prediction", "detached", "label", "zero"),
    "head": ("separate", "shared"),
}

# Settings with a meaning for some objectives only; elsewhere they must keep their default.
APPLIES: dict[str, tuple[str, ...]] = {
    "fraction": ("ndem", "noisy_nodes"),
    "curvature": ("ndem",),
    "learned_curvature": ("ndem",),
    "clean_forces": ("ndem",),
    "head": ("ndem",),
    "dens_probability": ("dens",),
}


class SettingsError(NDeMError, ValueError):
    """An unknown or impossible setting; the message lists what is valid."""


@dataclass(frozen=True)
class NDeMSettings:
    """Settings of the auxiliary task (lengths in Angstrom; "paper" marks a default it states)."""

    # What the auxiliary head learns: "ndem" (Eq. 17, the paper), "noisy_nodes" (classical
    # denoising on the same two views, Eq. 12), or "dens" (Liao et al., TMLR 2024: one view, some
    # structures of it corrupted and told their forces).
    objective: str = "ndem"
    # lambda_NDeM of Eq. 18; 0 is the plain model, without auxiliary head. Paper: 1 (Table 4).
    coefficient: float = 1.0
    # Fraction of all training steps before which every step is the plain trainer's, at its cost.
    # Paper: 0.
    start: float = 0.0
    # Fraction of all training steps over which the coefficient then rises linearly from 0.
    # Paper: 0.
    ramp: float = 0.0

    # --- noise, Eq. 11 and section 4.3.2 ---------------------------------------------------------
    # Largest standard deviation. Paper: 0.05 for MD17 (Table 5); not in the paper for OC20.
    sigma_max: float = 0.05
    # Smallest standard deviation. Not in the paper.
    sigma_min: float = 0.0
    # One sigma per batch (paper, 4.3.2) or one per structure.
    sigma_per: str = "batch"
    # How sigma is drawn from [sigma_min, sigma_max]; "fixed" always takes sigma_max.
    # Not in the paper, which only says "sampled from a range".
    sigma_distribution: str = "uniform"
    # Fraction of each structure's movable atoms that are moved. Not in the paper, which only says
    # "a subset"; 0.5 is the value of the DeNS 2M configuration.
    corrupt_ratio: float = 0.5
    # Which atoms may be moved: those with fixed == 0, or all.
    atoms: str = "free"
    # Fraction of the structures of a batch that get a second view (at least one). Paper: all.
    fraction: float = 1.0
    # objective: dens only, the probability with which a structure is corrupted. 0.5 is the value
    # of the DeNS 2M configuration.
    dens_probability: float = 0.5

    # --- target eps*, Eq. 17 ---------------------------------------------------------------------
    # eps* = scale * eps. "sigma_max": 1/sigma_max, a constant, so that the finite difference
    # relation F(X) - F(X~) = c eps keeps one c; "sigma": 1/(the sampled sigma); or a number in
    # 1/Angstrom. The paper says "normalised" and no more.
    noise_scale: float | str = "sigma_max"
    # The physical way to set the same scale: c of Eq. 16 in energy_unit/Angstrom^2, so that
    # eps* = (c / rms_F) eps is the normalised force change. Excludes noise_scale.
    curvature: float | None = None
    # c of Eq. 16 as an explicit learned scalar c > 0: the residual becomes
    # (f(X) - f'(X~)) / c - eps*. (c * eps* instead would be solved by c = 0.) Paper: implicit.
    learned_curvature: bool = False

    # --- objective, Eq. 17 -----------------------------------------------------------------------
    # Norm of the residual: squared L2 as in Eq. 17, or its L2 norm (fairchem's l2mae).
    norm: str = "squared_l2"
    # What stands for f(X): the main head's prediction with its gradient (paper, 4.3.1), the same
    # detached, the force label, or zero (structures at equilibrium without force labels).
    clean_forces: str = "prediction"
    # f' is a head of its own, or the main force head itself (the ablation of section 5.4.4).
    head: str = "separate"

    # Name of the energy unit of the data, for the names of logged quantities only.
    energy_unit: str = "eV"

    @classmethod
    def from_mapping(
        cls, given: Mapping[str, Any] | None, host_keys: tuple[str, ...] = ()
    ) -> NDeMSettings:
        """Build settings from a YAML mapping.

        Args:
            given: the mapping, without the keys that the host reads itself.
            host_keys: names of those keys, so that messages can offer them.

        Raises:
            SettingsError: for an unknown key (with the closest valid one), a value of the wrong
                type, outside its range or not among its choices, or an impossible combination.
        """
        given = dict(given or {})
        known = {field.name: field for field in fields(cls)}
        for key in given:
            if key not in known:
                valid = (*known, *host_keys)
                close = difflib.get_close_matches(str(key), valid, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise SettingsError(
                    f"task.ndem.{key} is not a setting of NDeM.{hint} Valid: {', '.join(valid)}."
                )
        return cls(**{key: _coerce(key, value) for key, value in given.items()})

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise SettingsError(
                    f"task.ndem.{name} = {value!r} is not valid. Choose one of: "
                    f"{', '.join(map(str, choices))}."
                )
        self._check_ranges()
        self._check_applies()
        if self.curvature is not None and self.noise_scale != "sigma_max":
            raise SettingsError(
                "task.ndem.curvature and task.ndem.noise_scale both set the scale of eps*: "
                "remove one of them."
            )
        if self.sigma_distribution == "log_uniform" and self.sigma_min <= 0:
            raise SettingsError(
                "task.ndem.sigma_distribution = 'log_uniform' needs sigma_min > 0: set "
                "task.ndem.sigma_min (Angstrom)."
            )
        if (
            self.noise_scale == "sigma"
            and self.sigma_min <= 0
            and self.sigma_distribution != "fixed"
        ):
            raise SettingsError(
                "task.ndem.noise_scale = 'sigma' divides by the sampled sigma, which may be 0: set "
                "task.ndem.sigma_min > 0 (Angstrom)."
            )
        if self.head == "shared" and self.learned_curvature:
            raise SettingsError(
                "task.ndem.learned_curvature lives in the auxiliary head; head = 'shared' has "
                "none: use head: separate."
            )

    def _check_applies(self) -> None:
        for field in fields(self):
            objectives = APPLIES.get(field.name, CHOICES["objective"])
            value = getattr(self, field.name)
            if value != field.default and self.objective not in objectives:
                raise SettingsError(
                    f"task.ndem.{field.name} = {value!r} means nothing for objective: "
                    f"{self.objective} (it is for: {', '.join(objectives)}): remove it."
                )

    def _check_ranges(self) -> None:
        def require(ok: bool, name: str, rule: str) -> None:
            if not ok:
                raise SettingsError(f"task.ndem.{name} = {getattr(self, name)!r}: must be {rule}.")

        require(self.coefficient >= 0, "coefficient", ">= 0 (0 is the plain model)")
        require(self.sigma_max > 0, "sigma_max", "> 0 (Angstrom)")
        require(0 <= self.sigma_min <= self.sigma_max, "sigma_min", "in [0, sigma_max]")
        require(0 < self.corrupt_ratio <= 1, "corrupt_ratio", "in (0, 1]")
        require(0 < self.fraction <= 1, "fraction", "in (0, 1]; coefficient: 0 switches NDeM off")
        require(0 < self.dens_probability <= 1, "dens_probability", "in (0, 1]")
        require(0 <= self.start < 1, "start", "in [0, 1), a fraction of the training steps")
        require(
            0 <= self.ramp <= 1 - self.start,
            "ramp",
            "in [0, 1 - start], or the coefficient never reaches its value",
        )
        scale_ok = self.noise_scale in ("sigma_max", "sigma") or (
            isinstance(self.noise_scale, float) and self.noise_scale > 0
        )
        require(scale_ok, "noise_scale", "'sigma_max', 'sigma' or a number > 0 (1/Angstrom)")
        require(self.curvature is None or self.curvature > 0, "curvature", "> 0 or absent")
        unit_ok = isinstance(self.energy_unit, str) and bool(self.energy_unit)
        require(unit_ok, "energy_unit", "a unit's name, such as eV")

    @property
    def active(self) -> bool:
        """Whether there is an auxiliary task; if not, training is the plain trainer's."""
        return self.coefficient > 0

    @property
    def needs_main_forces(self) -> bool:
        """Whether the objective reads the main force head or the force labels."""
        return self.objective == "dens" or (
            self.objective == "ndem" and self.clean_forces != "zero"
        )

    def coefficient_at(self, step: int, total_steps: int) -> float:
        """The coefficient of training step ``step`` = 1 ... ``total_steps``; 0 before ``start``.

        A function of these two numbers alone, so that a resumed run continues its schedule.
        """
        plain_steps = math.ceil(self.start * total_steps - 1e-9)
        if plain_steps > 0 and step <= plain_steps:
            return 0.0
        ramp_steps = max(self.ramp * total_steps, 1.0)
        rise = (step - plain_steps) / ramp_steps if self.ramp else 1.0
        return self.coefficient * min(1.0, rise)

    def as_dict(self) -> dict[str, Any]:
        """All settings, defaults included, as plain values."""
        return dataclasses.asdict(self)


_FLOATS = tuple(
    field.name for field in fields(NDeMSettings) if field.type in ("float", "float | None")
)


def _coerce(name: str, value: Any) -> Any:
    """Turn YAML's numbers into floats; refuse what is no finite number where one is needed."""
    if name == "learned_curvature":
        if not isinstance(value, bool):
            raise SettingsError(f"task.ndem.{name} = {value!r}: must be True or False.")
        return value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(value, str) and name in (*_FLOATS, "noise_scale"):
        # PyYAML reads "1e-2" as a string: accept what float() accepts.
        with contextlib.suppress(ValueError):
            value, is_number = float(value), True
    needs_number = name in _FLOATS and not (name == "curvature" and value is None)
    if needs_number or (name == "noise_scale" and is_number):
        if not is_number or not math.isfinite(value):
            raise SettingsError(f"task.ndem.{name} = {value!r}: must be a finite number.")
        return float(value)
    return value
