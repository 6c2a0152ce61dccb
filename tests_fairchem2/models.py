"""Models of fairchem 2 at the smallest size, and structures for them."""

from __future__ import annotations

import numpy as np
from ase.build import add_adsorbate, fcc100, fcc111
from ase.constraints import FixAtoms
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel

UMA = "fairchem.core.models.uma"
BACKBONE = {
    "model": f"{UMA}.escn_md.eSCNMDBackbone",
    "max_num_elements": 100,
    "sphere_channels": 8,
    "hidden_channels": 8,
    "edge_channels": 8,
    "lmax": 2,
    "mmax": 2,
    "num_layers": 2,
    "num_distance_basis": 8,
    "cutoff": 4.0,
    "max_neighbors": 100,
    "otf_graph": True,
    "always_use_pbc": False,
    "direct_forces": True,
    "regress_forces": True,
    "regress_stress": False,
    "norm_type": "rms_norm_sh",
    "act_type": "gate",
    "ff_type": "spectral",
    "chg_spin_emb_type": "rand_emb",
    "dataset_mapping": {"a": "a", "b": "b"},
}
EXPERTS = {
    "model": f"{UMA}.escn_moe.eSCNMDMoeBackbone",
    "num_experts": 4,
    "moe_layer_type": "pytorch",
    "use_composition_embedding": True,
    "moe_dropout": 0.3,
}
DIRECT = {
    "energy": {"module": f"{UMA}.escn_md.MLP_Energy_Head"},
    "forces": {"module": f"{UMA}.escn_md.Linear_Force_Head"},
}
EFS = {"efs": {"module": f"{UMA}.escn_md.MLP_EFS_Head"}}
# The layout of UMA's published checkpoints: one head for each data set, in one module.
WRAPPED = {
    "energyandforcehead": {
        "module": f"{UMA}.escn_moe.DatasetSpecificMoEWrapper",
        "dataset_mapping": {"a": "a", "b": "b"},
        "head_cls": f"{UMA}.escn_md.MLP_EFS_Head",
        "head_kwargs": {"wrap_property": False},
    }
}
GRADIENT = {"direct_forces": False}
KINDS = {
    "direct": ({}, DIRECT, False),
    "conserving": (GRADIENT, EFS, True),
    "experts": (EXPERTS, DIRECT, False),
    "conserving_experts": ({**EXPERTS, **GRADIENT}, EFS, True),
    "by_data_set": ({**EXPERTS, **GRADIENT}, WRAPPED, True),
}
STRESS = ({**GRADIENT, "regress_stress": True}, EFS, True)


def hydra(kind: str, **backbone) -> HydraModel:
    """A model of a kind."""
    own, heads, through = STRESS if kind == "stress" else KINDS[kind]
    return HydraModel(
        backbone={**BACKBONE, **own, **backbone}, heads=heads, pass_through_head_outputs=through
    )


def slabs() -> list[AtomicData]:
    """Two slabs of two data sets, with adsorbate and fixed atoms, away from symmetry."""
    random = np.random.default_rng(0)
    found = []
    for name, build, metal in (("a", fcc111, "Cu"), ("b", fcc100, "Pt")):
        atoms = build(metal, (2, 2, 2), vacuum=6.0, periodic=True)
        add_adsorbate(atoms, "O", 1.8, "hollow" if build is fcc100 else "fcc")
        atoms.positions += random.normal(scale=0.05, size=atoms.positions.shape)
        atoms.positions += 0.2  # no atom on the cell's face
        atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 2))
        found.append(AtomicData.from_ase(atoms, task_name=name, sid=name))
    return found
