"""NDeM in fairchem-core 2 (UMA, eSEN): two more lines in a fairchem configuration.

    runner:
      train_eval_unit:
        _target_: ndem_ocp.fairchem2.NDeMTrainEvalUnit
        ndem: {coefficient: 1.0, sigma_max: 0.1, curvature: 5.0, norm: l2mae}

``ndem`` has the settings of ``task.ndem`` on fairchem-core 1.10, with the same names and meanings
(:class:`ndem_ocp.method.NDeMSettings`). docs/fairchem2.md describes what runs here.

=================  ================================================================================
``unit``           the training unit: fairchem's, plus noise and auxiliary losses
``objectives``     what the model sees in a step, and its losses (``place: beside`` or ``instead``)
``model``          fairchem's HydraModel, extended to see X and X + eps
``views``          the second view of a batch
``routing``        the same routing of experts for both views
``heads``          auxiliary heads
``losses``         losses of tasks, logged in physical units, and the NDeM loss
``section``        reading and checking ``ndem``
``second_views``   second views with labels, from the same file as on fairchem 1.10
``references``     energy references, checked before the first step
``checkpoints``    random states in checkpoints; exports without the auxiliary head
``log``            history.jsonl, in addition to W&B
=================  ================================================================================
"""

from __future__ import annotations

from fairchem_kit.hosts import require_host
from fairchem_kit.lazy import lazy_names

_HOMES = {
    "ndem_ocp.fairchem2.heads": ("SphericalForceHead",),
    "ndem_ocp.fairchem2.model": ("TwoViewHydra",),
    "ndem_ocp.fairchem2.unit": ("NDeMTrainEvalUnit",),
}

__getattr__, __dir__, _names = lazy_names(
    __name__, _HOMES, before=lambda: require_host(2, "ndem_ocp.fairchem2")
)
__all__ = [*_names]
