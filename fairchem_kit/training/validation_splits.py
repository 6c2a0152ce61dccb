"""Validation on several splits, such as OC20's val_id, val_ood_ads, val_ood_cat, val_ood_both.

    dataset:
      val: {src: .../val_id}                     # the main split: best checkpoint, schedules
    task:
      validation_splits:
        ood_ads: .../val_ood_ads                 # a path; other settings as in dataset.val
        ood_both: {src: .../val_ood_both, first_n: 5000}   # or with other settings

Each split is evaluated after the main one by fairchem's own ``validate`` and logged as
``val_ood_ads``, ``val_ood_both``. The mean over all splits, including the main one, is
``val_mean``.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

from fairchem.core.common import distutils
from fairchem.core.datasets import create_dataset
from fairchem.core.trainers import OCPTrainer

from fairchem_kit.history.validation_sets import KEY, extra_validation_splits
from fairchem_kit.training.component import Component
from fairchem_kit.training.resume.rng import generators_kept
from fairchem_kit.words import counted

MEAN = "val_mean"


class ValidationSplits(Component):
    """Evaluates ``task.validation_splits`` after each validation on the main split.

    Random number generators are restored afterwards, so that training is the same to the bit with
    and without these splits.
    """

    task_keys = (KEY,)

    def after_datasets(self) -> None:
        self.loaders = {
            name: self._loader(section)
            for name, section in extra_validation_splits(self.config).items()
        }

    def _loader(self, section: dict[str, Any]) -> Any:
        dataset = create_dataset(section, "val")
        optim = self.config["optim"]
        size = optim.get("eval_batch_size", optim.get("batch_size", 1))
        sampler = self.trainer.get_sampler(dataset, size, shuffle=False)
        return self.trainer.get_dataloader(dataset, sampler)

    def after_validation(self, split: str, metrics: dict[str, Any], disable_tqdm: bool) -> None:
        if split != "val" or not self.trainer.in_training or not self.loaders:
            return
        found = [metrics]
        with generators_kept(self.trainer.device):
            for name, loader in self.loaders.items():
                seen = copy.copy(self.trainer)
                seen.test_loader = loader  # evaluated under any name except "val"
                found.append(OCPTrainer.validate(seen, name, disable_tqdm))
        self._log_mean(found)

    def _log_mean(self, splits: list[dict[str, dict[str, Any]]]) -> None:
        mean = mean_over_splits(splits)
        if distutils.is_master():
            numbers = ", ".join(f"{name}: {value:.4f}" for name, value in mean.items())
            logging.info(f"Mean of {counted(len(splits), 'validation split')}: {numbers}")
        trainer = self.trainer
        if trainer.logger is not None:
            trainer.logger.log({**mean, "epoch": trainer.epoch}, step=trainer.step, split=MEAN)


def mean_over_splits(splits: list[dict[str, dict[str, Any]]]) -> dict[str, float]:
    """The mean of each metric over the splits, not weighted by size, as in tables of OC20.

    Args:
        splits: fairchem's metrics for each split. No mean is returned for a metric that is
            missing or not finite in any split.
    """
    mean = {}
    for name in splits[0]:
        values = [split[name]["metric"] for split in splits if name in split]
        if len(values) == len(splits) and all(map(math.isfinite, values)):
            mean[name] = sum(values) / len(values)
    return mean
