"""``ndem fit --second-views``: a file of views, or a potential to make them with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from fairchem_kit.calculators.spec import DATA
from fairchem_kit.words import counted
from ndem_ocp.fit.errors import FitError

if TYPE_CHECKING:
    from ndem_ocp.fit.dataset import FitData
    from ndem_ocp.fit.folder import Folder

MOST, LEAST = 32, 2  # views of a structure
#: A, range of sigma, by whether the structures are periodic (docs/second_views.md)
SIGMA = {False: (0.02, 0.05), True: (0.002, 0.01)}
FILE = "views.lmdb"


def is_potential(given: str | None) -> bool:
    """Whether ``--second-views`` names a calculator, ``MODULE:CALL`` or ``data``, and no file."""
    return given is not None and (":" in given or given == DATA) and not Path(given).is_file()


def views_file(given: str | None, folder: Folder) -> str | None:
    """The file for the configuration: the given one, or the one that the fit makes."""
    return str(folder.path / FILE) if is_potential(given) else given


def make_views(spec: str, data: FitData, folder: Folder, minutes: float) -> None:
    """Make views of the training split in about ``minutes``, as many per structure as possible.

    Views made by an interrupted fit are kept.

    Raises:
        FitError: not enough time for two views of each structure.
        DataError: the potential fails or disagrees with the data.
    """
    from ndem_ocp.second_views.draws import Draws
    from ndem_ocp.second_views.make import MakeOptions, make_second_views

    train, views = data.path / "train", folder.read("views")
    if views is None:
        views = _count(spec, train, data.train.frames, minutes)
        folder.note("views", views)
    low, high = SIGMA[data.periodic]
    print(
        f"{'views':<10}{views} of each structure, displaced by {low:g} to {high:g} A: "
        + ("surfaces and crystals" if data.periodic else "molecules")
        + f" (docs/second_views.md); as many as the potential makes in --time, at most {MOST}"
    )
    options = MakeOptions(draws=Draws(views, low, high))
    make_second_views(train, spec, folder.path / FILE, options)


def _count(spec: str, train: Path, frames: int, minutes: float) -> int:
    """How many views of each structure fit into the time, from a few calculations."""
    from fairchem_kit.calculators.potential import Potential
    from fairchem_kit.calculators.spec import calculator_of
    from fairchem_kit.curvature import correction
    from fairchem_kit.data.records import iter_structures

    structure = next(iter(iter_structures(train)))
    seconds = Potential(calculator_of(spec)).seconds(structure) + correction.seconds(structure)
    possible = int(60 * minutes / (seconds * frames)) - 2  # itself, and once for the correction
    if possible < LEAST:
        needed = (LEAST + 2) * seconds * frames / 60
        command = ["ndem", "data", "second-views", str(train), "--calculator", spec]
        command += ["--out", "views.lmdb", "--workers", "N"]
        raise FitError(
            f"--second-views: the potential takes {seconds:.2g} s per structure, so {LEAST} "
            f"views of {counted(frames, 'structure')} take {needed:.2g} minutes, and --time is "
            f"{minutes:g}: give a longer --time. Or make the views with several processes,\n  "
            f"{shlex.join(command)}\nand then give --second-views views.lmdb"
        )
    return min(MOST, possible)
