"""``ndem eval --curvature``: how well a model predicts changes of forces between near frames.

A model can have accurate forces and a wrong curvature; its relaxations and vibrations are then
wrong. The pairs of frames are those of ``ndem data curvature``; the model's forces on them have
already been computed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fairchem_kit.curvature.measure import agreement_of, isotropic
from fairchem_kit.curvature.pairs import near_pairs
from fairchem_kit.data.records import iter_structures
from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.evaluation.samples import Samples
from fairchem_kit.evaluation.splits import Split
from fairchem_kit.units.columns import Column

PAIRS = 200
ERROR, MEDIAN, BEST_C = "force_change_error", "force_change_error_median", "isotropic_error"
COLUMN = Column(ERROR, "curvature error (%)", ERROR, 100.0, "%", 1)


def force_change_metrics(split: Split, samples: Samples) -> dict[str, float]:
    """Relative errors of the change of forces over pairs of near frames of a split.

    Args:
        split: the evaluated split. samples: its predictions, all structures in order.

    Returns:
        ``force_change_error``: |dF_predicted - dF| / |dF| over all pairs, not scaled;
        ``force_change_error_median``: the median over pairs, with one scale for all;
        ``isotropic_error``: the error of the best c dX for the same pairs; ``force_change_pairs``:
        the number of pairs.

    Raises:
        EvaluationError: the model has no forces, or the split has no two near frames.
    """
    if not samples.atoms:
        raise EvaluationError(f"--curvature needs forces, and the model has none ({split.path}).")
    starts = np.cumsum([0, *samples.columns["natoms"]])
    labels = samples.atoms["force_label"]  # in the model's unit, as its predictions
    structures = [
        structure
        if structure.forces is None
        else replace(structure, forces=labels[starts[index] : starts[index + 1]])
        for index, structure in enumerate(iter_structures(split.path))
    ]
    pairs = near_pairs(structures, PAIRS)
    if not pairs:
        raise EvaluationError(
            f"--curvature: {split.path} has no two frames of one system that are 0.02 to 0.3 A "
            "apart. Leave out the option for this split."
        )
    forces = samples.atoms["force_prediction"]
    found = agreement_of(
        "model", structures, pairs, lambda index: forces[starts[index] : starts[index + 1]]
    )
    assert found.unscaled_error is not None  # it is a prediction of forces
    return {
        ERROR: found.unscaled_error,
        MEDIAN: found.median,
        BEST_C: isotropic(structures, pairs).relative_error,
        "force_change_pairs": float(found.pairs),
    }
