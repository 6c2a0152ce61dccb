"""A trainer from its configuration, in this process."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fairchem.core.common.registry import registry


def trainer_of(config: Mapping[str, Any], **arguments: Any) -> Any:
    """The trainer that a configuration names, as fairchem's command line builds it, without ranks.

    Args:
        config: a complete configuration, which is not changed.
        **arguments: others of the trainer's: identifier, run_dir, timestamp_id, seed, cpu, amp,
            print_every, is_debug.
    """
    config = copy.deepcopy(dict(config))
    return registry.get_trainer_class(config["trainer"])(
        task=config.get("task", {}),
        model=config["model"],
        outputs=config["outputs"],
        dataset=config["dataset"],
        optimizer=config["optim"],
        loss_functions=config["loss_functions"],
        evaluation_metrics=config["evaluation_metrics"],
        logger=config["logger"],
        local_rank=0,
        name="ocp",
        **arguments,
    )
