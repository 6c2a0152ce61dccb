"""Tables in docs/molecules.md and the README: the paper's results next to ours, and small runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ndem_ocp.bench.pages.table import NOT_RUN, spread, table

MOLECULES = (
    "aspirin",
    "benzene",
    "ethanol",
    "malonaldehyde",
    "naphthalene",
    "salicylic_acid",
    "toluene",
    "uracil",
)
# Force MAE in kcal/mol/A; the paper's Table 1.
TABLE_1 = {
    "TorchMD-NET": (0.2450, 0.2187, 0.1067, 0.1667, 0.0593, 0.1284, 0.0644, 0.0887),
    "Frad": (0.2087, 0.1994, 0.0910, 0.1415, 0.0530, 0.1081, 0.0540, 0.0760),
    "SliDe": (0.1740, 0.1691, 0.0882, 0.1538, 0.0483, 0.1006, 0.0540, 0.0825),
    "NDeM": (0.1654, 0.1802, 0.0868, 0.1439, 0.0480, 0.1004, 0.0536, 0.0806),
}
TARGETS = {
    "mu": "D",
    "alpha": "a0³",
    "homo": "meV",
    "lumo": "meV",
    "gap": "meV",
    "r2": "a0²",
    "zpve": "meV",
    "U0": "meV",
    "U": "meV",
    "H": "meV",
    "G": "meV",
    "Cv": "cal/(mol K)",
}
# The paper's Table 2.
TABLE_2 = {
    "TorchMD-NET": (0.011, 0.059, 20.3, 17.5, 36.1, 0.033, 1.840, 6.15, 6.38, 6.16, 7.62, 0.026),
    "Frad": (0.010, 0.0374, 15.3, 13.7, 27.8, 0.3419, 1.418, 5.33, 5.62, 5.55, 6.19, 0.020),
    "SliDe": (0.0087, 0.0366, 13.6, 12.3, 26.2, 0.3405, 1.521, 4.28, 4.29, 4.26, 5.37, 0.019),
    "NDeM": (0.0082, 0.0356, 13.6, 12.3, 26.0, 0.3127, 1.210, 5.31, 5.34, 4.89, 5.51, 0.019),
}
TABLE_4 = {"0": 0.2087, "0.1": 0.1688, "1": 0.1654, "10": 0.1671, "100": 0.1722}
TABLE_5 = {"0.005": 0.1666, "0.05": 0.1654, "0.1": 0.1657, "0.5": 0.1887}
TABLE_6 = {
    "Frad, fine-tuned": 0.2088,
    "Frad + NDeM": 0.1774,
    "SliDe, fine-tuned": 0.1698,
    "SliDe + NDeM": 0.1648,
    "NDeM from scratch": 0.1654,
}
ARMS = {
    "plain": "plain",
    "ndem": "NDeM, λ = 1",
    "plain-long": "plain, about NDeM's time",
}
SMALL = {"ethanol": "md17_ethanol_small.json", "aspirin": "md17_aspirin_small.json"}


def _ours(results: Path, name: str, arm: str, metric: str) -> str:
    """Our result with the paper's settings, from results/NAME.json, or "not run"."""
    path = results / f"{name}.json"
    if not path.exists():
        return NOT_RUN
    summary = json.loads(path.read_text())["arms"][arm]["summary"][metric]
    return spread(summary)


def paper_table_1(results: Path) -> str:
    """Forces on MD17."""
    metric = "forces_mae_kcal_per_mol_A"
    rows = [[f"paper: {name}", *values] for name, values in TABLE_1.items()]
    for arm, shown in (("plain", "ours: ET"), ("ndem", "ours: ET + NDeM")):
        rows.append([shown, *(_ours(results, f"table1_{m}", arm, metric) for m in MOLECULES)])
    names = (molecule.replace("_", " ") for molecule in MOLECULES)
    return table(["force MAE, kcal/mol/Å", *names], rows)


def paper_table_2(results: Path) -> str:
    """QM9."""
    units = {"meV": "_mae_meV", "D": "_mae_D", "a0³": "_mae_a0_3", "a0²": "_mae_a0_2"}
    rows = [[f"paper: {name}", *values] for name, values in TABLE_2.items()]
    for arm, shown in (("plain", "ours: ET"), ("ndem", "ours: ET + NDeM")):
        rows.append(
            [shown]
            + [
                _ours(results, f"table2_{t}", arm, t + units.get(unit, "_mae_cal_per_mol_K"))
                for t, unit in TARGETS.items()
            ]
        )
    return table(["MAE", *(f"{name} ({unit})" for name, unit in TARGETS.items())], rows)


def _ablation(head: str, key: str, values: dict[str, float], name: str) -> Callable[[Path], str]:
    def make(results: Path) -> str:
        metric = "forces_mae_kcal_per_mol_A"
        rows = [
            [value, paper, _ours(results, name, f"{key}={value}", metric)]
            for value, paper in values.items()
        ]
        return table([head, "paper: force MAE, aspirin (kcal/mol/Å)", "ours"], rows)

    return make


def paper_table_6(results: Path) -> str:
    """From pre-trained weights, which this project's tests cannot download."""
    rows = [[name, paper, NOT_RUN] for name, paper in TABLE_6.items()]
    return table(["", "paper: force MAE, aspirin (kcal/mol/Å)", "ours"], rows)


def md17_small(results: Path) -> str:
    """The small comparison of plain and NDeM, at equal steps and at equal cost."""
    rows, notes = [], []
    for molecule, name in SMALL.items():
        path = results / name
        if not path.exists():
            rows.append([molecule, NOT_RUN, *[""] * 5])
            continue
        found = json.loads(path.read_text())
        base = _cost(found["arms"]["plain"])
        for arm, values in found["arms"].items():
            errors = values["summary"]
            rows.append(
                [
                    molecule,
                    ARMS.get(arm, arm),
                    values["runs"][0]["steps"],
                    f"{_cost(values) / base:.2f}",
                    spread(errors["forces_mae_kcal_per_mol_A"]),
                    paired(values, found["arms"]["plain"]) if arm != "plain" else "",
                    spread(errors["energy_mae_kcal_per_mol"]),
                ]
            )
        notes.append(f"{molecule}: {_source(found, name, found['arms'])}")
    head = ["molecule", "arm", "steps", "relative cost", "force MAE (kcal/mol/Å)"]
    text = table([*head, "less plain, seed by seed", "energy MAE (kcal/mol)"], rows)
    return text + "\n\n" + "\n".join(notes) if notes else text


def paired(
    arm: dict[str, Any],
    plain: dict[str, Any],
    metric: str = "forces_mae_kcal_per_mol_A",
    digits: int = 3,
) -> str:
    """Mean ± standard deviation of the difference in ``metric`` between runs with the same seed.

    Runs with the same seed start from the same weights and see the same batches.
    """
    base = {run["seed"]: run["test"][metric] for run in plain["runs"]}
    found = [r["test"][metric] - base[r["seed"]] for r in arm["runs"] if r["seed"] in base]
    if not found:
        return ""
    stdev = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):+.{digits}f}{stdev}"


def relative_change(values: dict[str, Any], plain: dict[str, Any], metric: str) -> float | None:
    """Change of the mean of a metric to plain training, over the seeds that both have."""
    of_arm, base = ({run["seed"]: run["test"][metric] for run in arm["runs"]}
                    for arm in (values, plain))  # fmt: skip
    shared = of_arm.keys() & base.keys()
    return sum(of_arm[s] for s in shared) / sum(base[s] for s in shared) - 1 if shared else None


def _cost(arm: dict[str, Any]) -> float:
    """Mean processor time of a run in seconds."""
    return sum(run["process_s"] for run in arm["runs"]) / len(arm["runs"])


def _settings(name: str) -> Callable[[Path], str]:
    """The arms of one sweep on one molecule, compared with its plain arm."""

    def make(results: Path) -> str:
        path = results / name
        if not path.exists():
            return NOT_RUN
        found = json.loads(path.read_text())
        arms = found["arms"]
        plain = arms.get("plain")
        several = max(len(arm["runs"]) for arm in arms.values()) > 1
        rows = []
        for arm, values in arms.items():
            row = [
                ARMS.get(arm, arm),
                f"{_cost(values) / _cost(plain):.2f}" if plain else "",
                spread(values["summary"]["forces_mae_kcal_per_mol_A"]),
                spread(values["summary"]["energy_mae_kcal_per_mol"]),
            ]
            if several:
                row.insert(3, paired(values, plain) if plain and arm != "plain" else "")
            rows.append(row)
        head = ["setting", "relative cost", "force MAE (kcal/mol/Å)", "energy MAE (kcal/mol)"]
        if several:
            head.insert(3, "less plain, seed by seed")
        return table(head, rows) + f"\n\n{_source(found, name, arms)}"

    return make


def _source(found: dict[str, Any], name: str, arms: dict[str, Any]) -> str:
    seeds = sorted({len(values["runs"]) for values in arms.values()})
    return (
        f"{' or '.join(map(str, seeds))} seed{'s' if seeds != [1] else ''}, "
        f"{found['hardware']['cpu']}, one thread per run, torch {found['hardware']['torch']}, "
        f"commit {found['commit'][:10]}; [all numbers](results/{name})."
    )


MOLECULE_TABLES = {
    "paper_table_1": paper_table_1,
    "paper_table_2": paper_table_2,
    "paper_table_4": _ablation("λ_NDeM", "coefficient", TABLE_4, "table4"),
    "paper_table_5": _ablation("σ_max (Å)", "sigma_max", TABLE_5, "table5"),
    "paper_table_6": paper_table_6,
    "md17_small": md17_small,
    "md17_settings": _settings("md17_ethanol_settings.json"),
    "md17_frames": _settings("md17_ethanol_100.json"),
    "md17_knobs": _settings("md17_ethanol_knobs.json"),
}
