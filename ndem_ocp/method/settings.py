"""All settings of NDeM and related objectives, as one validated, immutable record.

The YAML key of each field is ``task.ndem.<field>``. The comment on a field says what it does, where
it is in the paper, and whether its default is the paper's. docs/settings_reference.md is generated
from these comments (``make docs-pages``): they are Markdown, and the first sentence is a summary.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ndem_ocp.method.registry import OBJECTIVES, objective_of, objectives_with
from ndem_ocp.method.schedules import (
    Schedule,
    SettingsError,
    as_mapping,
    finite_number,
    is_number,
    schedule_of,
    values_of,
)

# The choices of ``objective`` are the names of the registered ones.
CHOICES: dict[str, tuple[Any, ...]] = {
    "target": ("isotropic", "second_views", "first_order"),
    "place": ("beside", "instead"),
    "sigma_per": ("batch", "graph"),
    "sigma_distribution": ("uniform", "log_uniform", "fixed"),
    "atoms": ("free", "all"),
    "norm": ("squared_l2", "l2mae"),
    "clean_forces": ("prediction", "detached", "label", "zero"),
    "head": ("separate", "shared"),
}

# Valid values in words, for error messages and for docs/settings_reference.md.
RANGES: dict[str, str] = {
    "coefficient": ">= 0 (0 is the plain model)",
    "sigma_max": "> 0 (Angstrom)",
    "sigma_min": "in [0, sigma_max]",
    "corrupt_ratio": "in (0, 1]",
    "fraction": "in (0, 1]; coefficient: 0 switches NDeM off",
    "dens_probability": "in (0, 1]",
    "start": "in [0, 1), a fraction of the training steps",
    "ramp": "in [0, 1 - start], or the coefficient never reaches its value",
    "share": "in [0, 1]",
    "trust": "> 0 (energy unit per Angstrom)",
    "noise_scale": "'sigma_max', 'sigma' or a number > 0 (1/Angstrom)",
    "curvature": "> 0 or absent",
    "energy_unit": "a unit's name, such as eV",
}

# Settings without a meaning where the change of the forces is known, and where views replace
# structures. (Settings of how noise is drawn are allowed, so that a configuration of NDeM needs few
# edits.)
NOT_WITH_LABELS = ("noise_scale", "curvature", "learned_curvature")
NOT_INSTEAD = ("fraction", "clean_forces", "head")
ONLY_INSTEAD = ("share", "energies")


def choices_of_all() -> dict[str, tuple[Any, ...]]:
    """{setting: its valid values} for the settings with a fixed list of values."""
    return {"objective": tuple(OBJECTIVES), **CHOICES}


@dataclass(frozen=True)
class NDeMSettings:
    """Settings of the auxiliary task (lengths in Angstrom; "paper" marks the paper's defaults)."""

    # What the auxiliary head learns. `ndem`: Eq. 17 (the paper). `noisy_nodes`: classical denoising
    # on the same two views, Eq. 12. `dens`: Liao et al., TMLR 2024, with one view in which some
    # structures are corrupted and their forces are encoded as an input.
    objective: str = "ndem"
    # How the forces are taken to change between the views. `isotropic`: by c eps (Eq. 16, the
    # paper). `second_views`: as a potential predicts (docs/second_views.md). `first_order`: there
    # is no force label, and the energy is E(X) - F . eps (PIWSL, arXiv 2408.05215).
    target: str = "isotropic"
    # How second views are used. `beside`: X and X + eps in one step (the paper). `instead`: X + eps
    # replaces X for some structures and trains the main heads, at the cost of a plain step.
    # null: `beside` for `target: isotropic`, `instead` for the other targets.
    place: str | None = None
    # Weight of the NDeM loss, lambda_NDeM of Eq. 18. 0 trains the plain model, without auxiliary
    # head.
    # Paper: 1 (Table 4). With `place: instead`, the weight of a displaced structure in the losses
    # of energy and forces.
    coefficient: float = 1.0
    # Fraction of all training steps that are plain, at the plain cost, before NDeM starts.
    # Paper: 0.
    start: float = 0.0
    # Fraction of all training steps over which the coefficient then rises linearly from 0.
    # Paper: 0.
    ramp: float = 0.0

    # --- noise, Eq. 11 and section 4.3.2 ---------------------------------------------------------
    # Largest standard deviation of the noise. Paper: 0.05 for MD17 (Table 5); not in the paper for
    # OC20. With `target: second_views` it limits which of the stored views are drawn, and may be a
    # schedule.
    sigma_max: Schedule = 0.05
    # Smallest standard deviation of the noise. Not in the paper. With `target: second_views` as for
    # `sigma_max`.
    sigma_min: Schedule = 0.0
    # Whether one sigma is drawn per batch (and rank; paper, 4.3.2) or per structure (`graph`).
    sigma_per: str = "batch"
    # How sigma is drawn between `sigma_min` and `sigma_max`. `log_uniform` needs `sigma_min` > 0;
    # `fixed` always takes `sigma_max`. Not in the paper, which only says "sampled from a range".
    sigma_distribution: str = "uniform"
    # Fraction of each structure's movable atoms that are moved; their number is rounded up. Not in
    # the paper, which only says "a subset"; 0.5 is the value of the DeNS 2M configuration.
    corrupt_ratio: float = 0.5
    # Which atoms may be moved: those with `fixed` == 0 (`free`), or `all`. Not in the paper.
    atoms: str = "free"
    # Fraction of the structures of a batch that get a second view; rounded up, at least one on each
    # rank. Paper: all.
    fraction: float = 1.0
    # Probability with which DeNS corrupts a structure. 0.5 is the value of the DeNS 2M
    # configuration.
    dens_probability: float = 0.5

    # --- target eps*, Eq. 17 ---------------------------------------------------------------------
    # Scale of the target, eps\* / eps. `sigma_max`: 1/sigma_max, a constant, so that the finite
    # difference F(X) - F(X~) = c eps keeps one c. `sigma`: 1/(the sampled sigma); needs
    # `sigma_min` > 0 or `sigma_distribution: fixed`. Or a number in 1/Å. The paper only says
    # "normalised".
    noise_scale: float | str = "sigma_max"
    # The same scale, given as a curvature c of Eq. 16 in energy unit/Å^2. Then eps\* = (c / rms_F)
    # eps is the normalised change of the forces. `ndem data check` measures a curvature to start
    # from. Excludes `noise_scale`. Not in the paper.
    curvature: float | None = None
    # Whether a factor c > 0 on eps\* is learned explicitly. It multiplies the scale of eps\*, so it
    # has no unit. The residual is then (f(X) - f'(X~)) / c - eps\*. (With c eps\* instead, c = 0
    # would be a solution.) In the paper the curvature is learned implicitly by the auxiliary head.
    learned_curvature: bool = False

    # --- objective, Eq. 17 -----------------------------------------------------------------------
    # Norm of the residual of an atom. `squared_l2`: its squared L2 norm, Eq. 17 (the paper).
    # `l2mae`: its L2 norm, as in fairchem's force loss of that name.
    norm: str = "squared_l2"
    # What is used as f(X). `prediction`: the main head's output, with its gradient (paper, 4.3.1).
    # `detached`: the same without gradient. `label`: the force label. `zero`: zero, for structures
    # at equilibrium that have no force labels.
    clean_forces: str = "prediction"
    # Whether f' is a head of its own (`separate`, the paper) or the main force head (`shared`, the
    # ablation of section 5.4.4).
    head: str = "separate"

    # --- second views with labels: target second_views or first_order ----------------------------
    # Probability with which a structure is displaced. Only with `place: instead`. May be a
    # schedule.
    share: Schedule = 0.5
    # Whether displaced structures have an energy label. Molecules had better or equal forces
    # without. Only with `place: instead`.
    energies: bool = True
    # Error of a view's force label, in energy unit/Å, at which the view has half the weight. The
    # weight is trust^2 / (trust^2 + (delta |dF|)^2), where delta is the potential's relative error
    # on the data. A good value is about the force error that you expect of the model. null: all
    # views have the same weight. Only with `target: second_views`.
    trust: Schedule | None = None

    # --- names -----------------------------------------------------------------------------------
    # Name of the energy unit of the data, for the names of logged quantities only. Beside fairchem
    # 1.10 the default is `outputs.energy.unit`, if that is given.
    energy_unit: str = "eV"

    @classmethod
    def from_mapping(
        cls, given: Mapping[str, Any] | None, host_keys: tuple[str, ...] = ()
    ) -> NDeMSettings:
        """Build settings from a YAML mapping.

        Args:
            given: the mapping, without the keys that only the host reads.
            host_keys: names of those keys, so that error messages can suggest them.

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
        for name, choices in choices_of_all().items():
            value = getattr(self, name)
            if name == "place" and value is None:
                continue
            if value not in choices:
                raise SettingsError(
                    f"task.ndem.{name} = {value!r} is not valid. Choose one of: "
                    f"{', '.join(map(str, choices))}."
                )
        self._check_ranges()
        self._check_applies()
        self._check_views()
        if self.curvature is not None and self.noise_scale != "sigma_max":
            raise SettingsError(
                "task.ndem.curvature and task.ndem.noise_scale both set the scale of eps*: "
                "remove one of them."
            )
        if self.sigma_distribution == "log_uniform" and self.sigma_range[0] == 0:
            raise SettingsError(
                "task.ndem.sigma_distribution = 'log_uniform' needs sigma_min > 0: set "
                "task.ndem.sigma_min (Angstrom)."
            )
        if (
            self.noise_scale == "sigma"
            and self.sigma_range[0] == 0
            and self.sigma_distribution != "fixed"
        ):
            raise SettingsError(
                "task.ndem.noise_scale = 'sigma' divides by the sampled sigma, which may be 0: set "
                "task.ndem.sigma_min > 0 (Angstrom)."
            )
        if self.head == "shared" and self.learned_curvature:
            raise SettingsError(
                "task.ndem.learned_curvature is a parameter of the auxiliary head, but with "
                "head = 'shared' there is no such head: use head: separate."
            )

    def _check_applies(self) -> None:
        for field in fields(self):
            objectives = objectives_with(field.name)
            value = getattr(self, field.name)
            if value != field.default and self.objective not in objectives:
                raise SettingsError(
                    f"task.ndem.{field.name} = {value!r} has no meaning with objective: "
                    f"{self.objective} (only with: {', '.join(objectives)}): remove it."
                )

    def _check_views(self) -> None:
        """Refuse settings that have no meaning with this target and this place."""
        if self.target == "first_order" and self.place == "beside":
            raise SettingsError(
                "task.ndem.target = 'first_order' only gives energy labels, for the main heads, so "
                "task.ndem.place must be instead, the default: remove it."
            )
        if self.target == "isotropic" and self.place == "instead":
            raise SettingsError(
                "task.ndem.place = 'instead' trains the main heads on displaced structures, "
                "which need labels: set task.ndem.target to second_views or first_order."
            )
        schedules = [
            name for name in ("sigma_max", "sigma_min") if isinstance(getattr(self, name), tuple)
        ]
        if schedules and self.target != "second_views":
            raise SettingsError(
                f"task.ndem.{schedules[0]}: a schedule needs target: second_views; give a number."
            )
        unused: tuple[str, ...] = () if self.instead else ONLY_INSTEAD
        unused += NOT_INSTEAD if self.instead else ()
        unused += NOT_WITH_LABELS if self.target != "isotropic" else ()
        unused += ("trust",) if self.target != "second_views" else ()
        for field in fields(self):
            if field.name in unused and getattr(self, field.name) != field.default:
                raise SettingsError(
                    f"task.ndem.{field.name} = {getattr(self, field.name)!r} has no meaning with "
                    f"target: {self.target}, place: {'instead' if self.instead else 'beside'}: "
                    "remove it."
                )

    def _check_ranges(self) -> None:
        def require(ok: bool, name: str) -> None:
            if not ok:
                raise SettingsError(
                    f"task.ndem.{name} = {getattr(self, name)!r}: must be {RANGES[name]}."
                )

        require(self.coefficient >= 0, "coefficient")
        for name in ("sigma_max", "sigma_min", "share"):
            require(getattr(self, name) is not None, name)
        lowest, highest = self.sigma_range
        low = max(values_of(self.sigma_min))
        require(min(values_of(self.sigma_max)) > 0, "sigma_max")
        require(0 <= lowest <= low <= highest, "sigma_min")
        require(0 < self.corrupt_ratio <= 1, "corrupt_ratio")
        require(0 < self.fraction <= 1, "fraction")
        require(0 < self.dens_probability <= 1, "dens_probability")
        require(0 <= self.start < 1, "start")
        require(0 <= self.ramp <= 1 - self.start, "ramp")
        require(all(0 <= value <= 1 for value in values_of(self.share)), "share")
        require(all(1e-12 <= value < math.inf for value in values_of(self.trust)), "trust")
        scale_ok = self.noise_scale in ("sigma_max", "sigma") or (
            isinstance(self.noise_scale, float) and self.noise_scale > 0
        )
        require(scale_ok, "noise_scale")
        require(self.curvature is None or self.curvature > 0, "curvature")
        require(isinstance(self.energy_unit, str) and bool(self.energy_unit), "energy_unit")

    @property
    def active(self) -> bool:
        """Whether there is an auxiliary task; otherwise training is that of the plain trainer."""
        return self.coefficient > 0

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Smallest and largest standard deviation over all of training, Angstrom."""
        return min(values_of(self.sigma_min)), max(values_of(self.sigma_max))

    @property
    def instead(self) -> bool:
        """Whether second views replace structures and train the main heads."""
        return self.place == "instead" or (self.place is None and self.target != "isotropic")

    @property
    def needs_main_forces(self) -> bool:
        """Whether the objective uses the main force head or the force labels."""
        return bool(objective_of(self).needs_main_forces)

    def coefficient_at(self, step: int, total_steps: int) -> float:
        """The coefficient of training step ``step`` = 1 ... ``total_steps``; 0 before ``start``.

        It depends on these two numbers alone, so that a resumed run continues its schedule.
        """
        plain_steps = math.ceil(self.start * total_steps - 1e-9)
        if plain_steps > 0 and step <= plain_steps:
            return 0.0
        ramp_steps = max(self.ramp * total_steps, 1.0)
        rise = (step - plain_steps) / ramp_steps if self.ramp else 1.0
        return self.coefficient * min(1.0, rise)

    def as_dict(self) -> dict[str, Any]:
        """All settings, defaults included, as plain values that :meth:`from_mapping` reads."""
        values = dataclasses.asdict(self)
        for name in _SCHEDULES:
            values[name] = as_mapping(values[name])
        return values


_TYPES = {field.name: str(field.type) for field in fields(NDeMSettings)}
_SCHEDULES = tuple(name for name, kind in _TYPES.items() if kind.startswith("Schedule"))


def _coerce(name: str, value: Any) -> Any:
    """What YAML has, in the type of the setting; refuse other values where a number is needed."""
    kind = _TYPES[name]
    if name in _SCHEDULES:
        return schedule_of(name, value)
    if kind == "bool" and not isinstance(value, bool):
        raise SettingsError(f"task.ndem.{name} = {value!r}: must be True or False.")
    if kind == "float | str" and not is_number(value):
        return value
    if kind == "float | None" and value is None:
        return None
    return finite_number(name, value) if kind.startswith("float") else value


def check_second_views(settings: NDeMSettings, path: Any, auxiliary_head: Any) -> None:
    """Check that a file of second views is given exactly if needed, and no unused auxiliary head.

    Args:
        path, auxiliary_head: the keys ``second_views`` and ``auxiliary_head``, which a host reads.

    Raises:
        SettingsError: naming the key and what to do.
    """
    if settings.target == "second_views" and not isinstance(path, str):
        raise SettingsError(
            "task.ndem.target = 'second_views' needs task.ndem.second_views: FILE, a file "
            "made by `ndem data second-views`."
        )
    if settings.target != "second_views" and path is not None:
        raise SettingsError(
            f"task.ndem.second_views = {path!r} is only read with task.ndem.target: "
            "second_views: set that, or remove task.ndem.second_views."
        )
    if settings.instead and auxiliary_head is not None:
        raise SettingsError(
            "task.ndem.auxiliary_head has no meaning with place: instead, which trains the main "
            "heads: remove it."
        )
