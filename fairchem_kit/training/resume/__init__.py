"""Resuming: a run that is killed at any moment continues as if it had never been interrupted.

In the order of a run:

1. **Choosing a checkpoint** (component.py, ``from_newest``; settings.py). At the start of ``train``
   the newest good checkpoint of the run is used, or the one in ``--checkpoint`` if that is newer.
   ``fairchem_kit.checkpoints`` writes, checks and finds the files.
2. **Its content** (content.py). Everything on which the next step depends, for all ranks: weights,
   optimizer, schedule, moving average, random number generators (rng.py), the position in the data
   (position.py), the means since the last log line, and the unfinished part of the current step.
3. **Restoring it** (component.py, ``load``; restore.py). Everything learned comes from the
   checkpoint. Settings (learning rate, length, weight decay) come from the configuration. If these
   have not changed, the run continues identically to the bit. If they have, the log lists what
   differs (settings.py, ``changed_settings``).
4. **Finishing a step** (component.py, ``finish_step``). fairchem's loop saves before a step's
   validation and schedule. The file records this unfinished part, the tail of the step, which is
   then done first. Afterwards the generators are restored, and restored again after the epoch's
   loader has drawn its seed.
5. **Stopping** (stopping.py, ending.py). A signal only sets a request. All ranks check it together
   once per step, or once per batch in a validation, finish the step, save, and raise
   :class:`~.stopping.Stopped`. An interrupted validation is repeated from its start.

A step ends when the next batch is requested (``training/step_loader.py``): ``between_steps``.
"""

from fairchem_kit.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        f"{__name__}.component": ("Resume",),
        f"{__name__}.ending": ("Ending",),
        f"{__name__}.settings": ("changed_settings",),
    },
)
