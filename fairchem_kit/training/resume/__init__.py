"""Resuming: a run that is killed at any moment continues as if nothing had happened.

How it works, in the order of a run:

1. **Which checkpoint** (component.py, ``from_newest``; settings.py). At the start of ``train`` the
   newest good checkpoint of the run is taken, or a newer one that ``--checkpoint`` names.
   ``fairchem_kit.checkpoints`` writes, checks and finds the files.
2. **What it holds** (content.py). Everything that the next step depends on, of all ranks: weights,
   optimizer, schedule, moving average, generators (rng.py), the place in the data (position.py),
   the means since the last log line, and what is left of the step that it was written in.
3. **Taking it back** (component.py, ``load``; restore.py). What a run has learned comes from the
   checkpoint. What a user writes (learning rate, length, weight decay) comes from the
   configuration. Where both say the same, the run is the same to the bit; where not, the log says
   what differs (settings.py, ``changed_settings``).
4. **The rest of a step** (component.py, ``finish_step``). fairchem's loop saves before the step's
   validation and schedule. What is left, the step's tail, is noted in the file and done first.
   Then the generators are put back, once more when the epoch's loader has drawn its seed.
5. **Stopping** (stopping.py, ending.py). A signal leaves a note. The ranks read it together once
   per step, or per batch of a validation, finish the step, save and leave by
   :class:`~.stopping.Stopped`. A validation that was left is done again from its start.

A step ends where the next batch is asked for (``training/step_loader.py``): ``between_steps``.
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
