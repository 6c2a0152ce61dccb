"""Validation on several splits, as OC20 has it: val_id, val_ood_ads, val_ood_cat, val_ood_both.

    dataset:
      val: {src: .../val_id}                     # the main split: best checkpoint, schedules
    task:
      validation_splits:
        ood_ads: .../val_ood_ads                 # a path, with dataset.val's other settings
        ood_both: {src: .../val_ood_both, first_n: 5000}   # or settings in place of its

Each is evaluated after the main split by fairchem's own ``validate`` and logged as ``val_ood_ads``,
``val_ood_both``; the mean over all of them and the main one as ``val_mean``.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.datasets import create_dataset
from fairchem.core.trainers import OCPTrainer

from ndem_ocp.training.checks.splits import extra_validation_splits
from ndem_ocp.training.rng import generators_kept

MEAN = "val_mean"


class ValidationSplits(OCPTrainer):
    """fairchem's trainer with ``task.validation_splits``, evaluated while it trains.

    They leave no trace in training: the generators are put back, so that a run with them is the
    run without them, to the bit.
    """

    def load_datasets(self) -> None:
        super().load_datasets()
        self.more_val_loaders = {
            name: self._validation_loader(section)
            for name, section in extra_validation_splits(self.config).items()
        }

    def _validation_loader(self, section: dict[str, Any]) -> Any:
        dataset = create_dataset(section, "val")
        optim = self.config["optim"]
        size = optim.get("eval_batch_size", optim.get("batch_size", 1))
        return self.get_dataloader(dataset, self.get_sampler(dataset, size, shuffle=False))

    @torch.no_grad()
    def validate(self, split: str = "val", disable_tqdm: bool = False):
        metrics = super().validate(split, disable_tqdm)
        if split != "val" or not getattr(self, "_training", False) or not self.more_val_loaders:
            return metrics
        test_loader, found = self.test_loader, [metrics]
        with generators_kept(self.device):
            try:
                for name, loader in self.more_val_loaders.items():
                    self.test_loader = loader  # what fairchem evaluates under any name but "val"
                    found.append(super().validate(name, disable_tqdm))
            finally:
                self.test_loader = test_loader
        self._log_mean(found)
        return metrics

    def _log_mean(self, splits: list[dict[str, dict[str, Any]]]) -> None:
        mean = mean_over_splits(splits)
        if distutils.is_master():
            numbers = ", ".join(f"{name}: {value:.4f}" for name, value in mean.items())
            logging.info(f"Mean of {len(splits)} validation splits: {numbers}")
        if self.logger is not None:
            self.logger.log({**mean, "epoch": self.epoch}, step=self.step, split=MEAN)


def mean_over_splits(splits: list[dict[str, dict[str, Any]]]) -> dict[str, float]:
    """Each metric's plain mean over the splits, whatever their sizes, as in the tables of OC20.

    Args:
        splits: fairchem's metrics of each. A metric that a split lacks, or that is not finite
            there, has no mean.
    """
    mean = {}
    for name in splits[0]:
        values = [split[name]["metric"] for split in splits if name in split]
        if len(values) == len(splits) and all(map(math.isfinite, values)):
            mean[name] = sum(values) / len(values)
    return mean
