"""The cases in second_views.py: data, arms, lengths.

A case is a data set and a budget: a multiple of 3,120 plain steps for molecules, a number of plain
steps for surfaces. Plain training always uses the whole budget, with a learning-rate schedule of
that length. An arm with more expensive steps does fewer steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VIEWS = {"task.ndem.target": "second_views", "task.ndem.sigma_min": 0.02,
         "task.ndem.sigma_max": 0.05, "task.ndem.share": 0.6}  # fmt: skip
PLAIN = {"task.ndem.coefficient": 0}
NEW_DATA = "data/second_views/oc20_new"


#: Files of second views, and their options of `ndem data second-views`: the calculator, None for
#: the one given to the experiment, and the correction.
VIEW_FILES: dict[str, tuple[str | None, str]] = {
    "views": (None, "none"),
    "corrected": (None, "fit"),
    "alone": ("data", "fit"),
}


@dataclass(frozen=True)
class Pretraining:
    """Plain training on ``data`` for ``steps`` steps, from which other runs start."""

    name: str
    data: str
    steps: int


@dataclass(frozen=True)
class Arm:
    """Changes of the configuration, and the cost of a step in plain steps.

    ``potential``: fraction of the budget for pre-training on the potential's own labels.
    ``views``: which views it uses, a key of :data:`VIEW_FILES`.
    """

    changes: dict[str, Any]
    cost: float = 1.0
    potential: float = 0.0
    views: str = "views"

    @property
    def has_views(self) -> bool:
        return self.changes.get("task.ndem.target") == "second_views"


@dataclass(frozen=True)
class Evaluation:
    """A measurement on every trained model, in addition to its test errors.

    Attributes:
        name: its name in the results.
        command, words: of `ndem`, before and after the checkpoint. The only split is named
            ``test``.
        keys: metrics to keep.
    """

    name: str
    command: str
    words: tuple[str, ...]
    keys: tuple[str, ...]


FORCES = {**VIEWS, "task.ndem.energies": False}
MOLECULE_ARMS = {
    "plain": Arm(PLAIN),
    "instead": Arm(VIEWS),
    "forces_only": Arm(FORCES),
    "corrected": Arm(FORCES, views="corrected"),
    "small": Arm(
        {**FORCES, "task.ndem.sigma_min": 0.005, "task.ndem.sigma_max": 0.02}, views="corrected"
    ),
    "late": Arm({**FORCES, "task.ndem.share": "{0: 0.6, 0.5: 0.6, 0.8: 0}"}, views="corrected"),
    "trust": Arm({**FORCES, "task.ndem.trust": 0.7}, views="corrected"),
    "alone": Arm(FORCES, views="alone"),
    "ndem": Arm({"task.ndem.sigma_max": 0.05}, cost=1.6),
    "first_order": Arm(
        {"task.ndem.target": "first_order", "task.ndem.sigma_max": 0.02, "task.ndem.share": 0.25}
    ),
    "pretrained": Arm(PLAIN, potential=0.5),
}
SURFACE_VIEWS = {**VIEWS, "task.ndem.sigma_min": 0.002, "task.ndem.sigma_max": 0.01,
                 "task.ndem.share": 0.5}  # fmt: skip
SURFACE_ARMS = {
    "plain": Arm(PLAIN),
    "instead": Arm(SURFACE_VIEWS),
    "forces_only": Arm({**SURFACE_VIEWS, "task.ndem.energies": False}),
    "ndem": Arm({"task.ndem.sigma_max": 0.05}, cost=1.8),
    "dens": Arm({"task.ndem.objective": "dens", "task.ndem.coefficient": 10,
                 "task.ndem.sigma_max": 0.1, "task.ndem.sigma_distribution": "fixed",
                 "task.ndem.corrupt_ratio": 0.5, "task.ndem.dens_probability": 0.5,
                 "task.ndem.norm": "l2mae"}, cost=1.1),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One comparison; see the subclasses for the data.

    Attributes:
        frames: number of training structures. budget: see the module. arms: names in
            :attr:`all_arms`.
        draws, sigma: options of `ndem data second-views`.
        start: pre-training from which every arm starts.
    """

    frames: int
    budget: float
    arms: tuple[str, ...]
    draws: int = 24
    sigma: tuple[float, float] = (0.005, 0.08)
    start: Pretraining | None = None
    batch_size: int = 8
    validations: int = 24
    all_arms: dict[str, Arm] = field(default_factory=dict)
    config: str = ""
    metrics: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def data(self) -> str:
        """The folder with train, val and test."""
        raise NotImplementedError

    @property
    def views(self) -> str:
        """The file of second views of the potential as it is."""
        return self.views_file("views")

    def views_file(self, which: str) -> str:
        """The file of second views; ``which``: a key of :data:`VIEW_FILES`."""
        return f"{self.data}.{which}.lmdb"

    @property
    def plain_steps(self) -> int:
        return round(self.budget)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Errors of the change of forces between near frames of the test set."""
        keys = ("force_change_error", "isotropic_error", "force_change_pairs")
        words = ("--data", f"test={self.data}/test", "--curvature")
        return (Evaluation("curvature", "eval", words, keys),)

    @property
    def evaluated(self) -> dict[str, str]:
        """Data for which the error of predicting no force is given, by name."""
        return {}

    def make(self, ndem: Callable[..., None], args: Any) -> None:
        """Make the data set; ``ndem(*words)`` runs an ndem command."""
        raise NotImplementedError

    def overrides(self, name: str, checkpoint: str | None = None) -> dict[str, Any]:
        """The settings of an arm; ``checkpoint``: the one it starts from."""
        arm = self.all_arms[name]
        views = {"task.ndem.second_views": self.views_file(arm.views)}
        return {
            **self.settings(self.data, (1 - arm.potential) * self.plain_steps / arm.cost),
            **arm.changes,
            **(views if arm.has_views else {}),
            **({"task.init_from.checkpoint": checkpoint} if checkpoint else {}),
        }

    def settings(self, data: str, steps: float) -> dict[str, Any]:
        """Settings that all runs of about ``steps`` steps on ``data`` share."""
        steps_per_epoch = -(-frames_of(data, self.frames) // self.batch_size)
        epochs = max(1, round(steps / steps_per_epoch))
        every = max(1, epochs // self.validations)
        return {
            "dataset.train.src": f"{data}/train",
            "dataset.val.src": f"{self.data}/val",
            "optim.max_epochs": epochs,
            "optim.eval_every": every * steps_per_epoch,
            "optim.scheduler_params.warmup_epochs": max(1, round(0.04 * epochs)),
            "logger.inner": None,
            "hide_eval_progressbar": True,
        }

    def make_potential_set(self, ndem: Callable[..., None]) -> None:
        """Make a data set of displaced structures with the potential's own forces."""
        raise NotImplementedError

    def pretraining(self, arm: str) -> Pretraining | None:
        """The pre-training from which an arm starts."""
        share = self.all_arms[arm].potential
        if share:
            steps = round(share * self.plain_steps)
            return Pretraining("potential", f"{self.data}.potential", steps)
        return self.start


def frames_of(data: str, otherwise: int) -> int:
    """Number of frames in DATA/train; ``otherwise`` if it does not exist yet."""
    path = Path(data) / "train" / "metadata.npz"
    return len(np.load(path)["natoms"]) if path.exists() else otherwise


@dataclass(frozen=True)
class Molecule(Case):
    """A molecule from revised MD17 with original labels; the small ET with gradient forces."""

    molecule: str = ""
    draws: int = 64
    all_arms: dict[str, Arm] = field(default_factory=lambda: MOLECULE_ARMS)
    config: str = "configs/md17/small_ndem.yml"
    metrics: tuple[str, ...] = ("forces_mae_kcal_per_mol_A", "energy_mae_kcal_per_mol",
                                "forces_cosine_similarity")  # fmt: skip
    about = "Small ET (32 channels, 2 layers, gradient forces)"

    @property
    def name(self) -> str:
        start = f"_from_{self.start.name}" if self.start else ""
        return f"{self.molecule}_{self.frames}_x{self.budget:g}{start}"

    @property
    def title(self) -> str:
        start = f", from a model of {self.start.name}" if self.start else ""
        return f"{self.molecule}, {self.frames} frames{start}, budget {self.budget:g}"

    @property
    def data(self) -> str:
        return f"data/second_views/{self.molecule}_{self.frames}"

    @property
    def plain_steps(self) -> int:
        return round(3120 * self.budget)

    def make(self, ndem: Callable[..., None], args: Any) -> None:
        """50 other frames for validation and 1,000 for the test."""
        molecules = {self.molecule: (self.frames, self.data)}
        if self.start:
            molecules[self.start.name] = (950, self.start.data)
        for molecule, (frames, out) in molecules.items():
            if not Path(out).exists():
                parts = [args.md17 / f"rmd17_{molecule}_{p}_01.npz" for p in ("train", "test")]
                ndem("data", "md17", parts[0], "--test-file", parts[1], "--labels", "original",
                     "--train", frames, "--val", 50, "--test", 1000, "--out", out)  # fmt: skip

    def make_potential_set(self, ndem: Callable[..., None]) -> None:
        """Energies are DFT energies of the frame plus the potential's change of energy.

        So only forces, and energy differences within a frame, come from the potential alone.
        """
        from ase.units import kcal, mol

        from fairchem_kit.data.records import iter_structures
        from ndem_ocp.second_views.draws import digest_of
        from ndem_ocp.second_views.sidecar import Sidecar

        out = Path(f"{self.data}.potential")
        if out.exists():
            return
        views, unit = Sidecar(self.views), kcal / mol
        positions, energies, forces = [], [], []
        for structure in iter_structures(f"{self.data}/train"):
            found = views.get(digest_of(structure))
            positions.append(structure.positions + found.eps)
            energies.append(structure.energy + found.energy_change / unit)
            forces.append((found.forces + found.force_change) / unit)
        arrays = {"coords": positions, "energies": energies, "forces": forces}
        npz = out.with_name(f"{out.name}.npz")
        np.savez(npz, nuclear_charges=structure.numbers,
                 **{key: np.concatenate(value) for key, value in arrays.items()})  # fmt: skip
        ndem("data", "md17", npz, "--train", len(np.concatenate(energies)) - 50, "--val", 50,
             "--test", 0, "--out", out)  # fmt: skip


@dataclass(frozen=True)
class Surfaces(Case):
    """Random frames from a few OC20 relaxations; the small EquiformerV2 with direct forces.

    ``files`` are names of trajectories, ``new_files`` those of systems that are not trained on.
    """

    files: tuple[str, ...] = ()
    new_files: tuple[str, ...] = ()
    batch_size: int = 4
    validations: int = 10
    sigma: tuple[float, float] = (0.002, 0.02)
    all_arms: dict[str, Arm] = field(default_factory=lambda: SURFACE_ARMS)
    config: str = "configs/oc20/small_ndem.yml"
    metrics: tuple[str, ...] = ("forces_mae", "energy_mae", "forces_cosine_similarity")
    about = "Small EquiformerV2 (32 channels, 2 layers, L = 2, direct forces)"

    @property
    def name(self) -> str:
        return f"oc20_{self.frames}_{self.budget:g}"

    @property
    def title(self) -> str:
        return f"OC20, {self.frames} frames of {len(self.files)} systems, {self.budget:,g} steps"

    @property
    def data(self) -> str:
        return f"data/second_views/oc20_{self.frames}"

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Also errors on new systems, and relaxations of the training systems from their starts."""
        new = ("--data", f"test={NEW_DATA}/train")
        forces = ("forces_mae", "forces_cosine_similarity")
        relax = ("--data", f"test={self.data}.starts", "--steps", "200", "--fmax", "0.05")
        ends = ("end_distance", "start_distance", "energy_mae", "converged")
        return (
            *super().evaluations,
            Evaluation("new_systems", "eval", new, forces),
            Evaluation("relaxations", "relax", relax, ends),
        )

    @property
    def evaluated(self) -> dict[str, str]:
        return {"test": f"{self.data}/test", "new_systems": f"{NEW_DATA}/train"}

    def make(self, ndem: Callable[..., None], args: Any) -> None:
        """Energies are relative to the last frame of each relaxation."""
        files, new_files = ([args.oc20 / f"{name}.traj" for name in names]
                            for names in (self.files, self.new_files))  # fmt: skip
        energies = ("--energy-reference", "last-frame")
        frames = ("--max-force", 50, "--no-progress", *energies)
        if not Path(self.data).exists():
            total = 1320  # approximate number of frames in six relaxations
            test = round(1 - (self.frames + 46) / total, 3)
            ndem("data", "ase", *files, "--split-by", "frame", "--val-fraction", 0.035,
                 "--test-fraction", test, "--out", self.data, *frames)  # fmt: skip
        if not Path(NEW_DATA).exists():
            ndem("data", "ase", *new_files, "--val-fraction", 0, "--test-fraction", 0,
                 "--out", NEW_DATA, *frames)  # fmt: skip
        if not Path(f"{self.data}.starts").exists():
            ndem("data", "is2re", *files, "--out", f"{self.data}.starts", *energies)

    def settings(self, data: str, steps: float) -> dict[str, Any]:
        """Includes the normalizer that `ndem data check` prints for the training frames."""
        from fairchem_kit.data.statistics import dataset_statistics

        labels = dataset_statistics(Path(self.data) / "train")
        normalizer = "dataset.train.transforms.normalizer"
        return {
            **super().settings(data, steps),
            "optim.batch_size": self.batch_size,
            "optim.eval_batch_size": 2 * self.batch_size,
            f"{normalizer}.energy.mean": labels.energy_mean,
            f"{normalizer}.energy.stdev": labels.energy_stdev,
            f"{normalizer}.forces.stdev": labels.force_rms,
        }


ALL = ("plain", "instead", "forces_only", "corrected", "alone", "ndem")
ON_SURFACES = ("plain", "instead", "forces_only", "ndem", "dens")
FOUR = tuple(f"random1000{number}" for number in (120, 156, 161, 164))
SIX = tuple(f"random1000{number}" for number in (103, 110, 141, 169, 187, 195))
ASPIRIN = Pretraining("aspirin", "data/second_views/aspirin_950", 3120)
CASES: list[Case] = [
    Molecule(50, 2, (*ALL, "pretrained"), molecule="ethanol"),
    Molecule(50, 1, ALL, molecule="aspirin"),
    Molecule(100, 4, ALL, molecule="ethanol"),
    Surfaces(60, 800, ON_SURFACES, files=SIX, new_files=FOUR),
    Surfaces(60, 3200, ("plain", "instead"), files=SIX, new_files=FOUR),
    Molecule(50, 1, ("plain", "corrected", "alone"), molecule="ethanol", start=ASPIRIN),
    Molecule(100, 2, ALL, molecule="aspirin"),
    Molecule(100, 1, ("plain", "instead", "first_order"), molecule="ethanol"),
    Molecule(300, 4, (*ALL, "small", "late", "trust"), molecule="ethanol", draws=32),
    Molecule(300, 16, ("plain", "corrected", "small", "alone"), molecule="ethanol", draws=32),
    Molecule(300, 4, ALL, molecule="aspirin", draws=32),
    Molecule(100, 16, ALL, molecule="ethanol"),
    Molecule(950, 4, ALL, molecule="ethanol", draws=16),
    Molecule(950, 4, ALL, molecule="aspirin", draws=16),
]
