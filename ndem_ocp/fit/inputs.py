"""The files of a fit, and what each of them is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairchem_kit.data.errors import FrameError, not_read
from fairchem_kit.data.frame_files import Source
from fairchem_kit.data.sources.ase import expand_sources
from fairchem_kit.data.split import TEST, TRAIN, VAL
from ndem_ocp.fit.errors import FitError

if TYPE_CHECKING:
    from fairchem_kit.data.frames import LabelOptions

_OPTIONS = {TRAIN: "FILE", VAL: "--valid", TEST: "--test"}


@dataclass(frozen=True)
class Inputs:
    """Sources in order, and the split that each is meant for.

    Attributes:
        sources: all files. roles: ``{source name: train, val or test}``; ``train`` is everything
            not given with ``--valid`` or ``--test``, and may be split further. labels: where the
            labels are. pbc: of the first frame, such as ``TTF``; all others must agree.
    """

    sources: list[Source]
    roles: dict[str, str]
    labels: LabelOptions
    pbc: str

    def given(self, split: str) -> bool:
        """Whether files were given for a split."""
        return split in self.roles.values()

    def fingerprint(self) -> list[dict[str, Any]]:
        """Path, size and modification time of every file, to notice changes."""
        found = []
        for source in self.sources:
            path = Path(source.path).resolve()
            about = path.stat()
            found.append(
                {
                    "file": str(path),
                    "role": self.roles[source.name],
                    "bytes": about.st_size,
                    "changed_ns": about.st_mtime_ns,
                }
            )
        return found


def read_inputs(
    train: Sequence[str],
    valid: Sequence[str] | None,
    test: Sequence[str] | None,
    **labels: Any,
) -> Inputs:
    """Find the files, and look at the first frame of each.

    Args:
        train, valid, test: paths, folders, patterns. labels: of ``data.frames.LabelOptions``.

    Raises:
        DataError: no such file, or one of an unknown kind.
        FitError: a file given for two splits; labels that the first frame does not have.
    """
    named: dict[Path, tuple[str, Source]] = {}
    for split, words in ((TRAIN, train), (VAL, valid), (TEST, test)):
        for source in expand_sources(words) if words else []:
            path = Path(source.path).resolve()
            if path in named:
                raise FitError(
                    f"{source.path} is given as {_OPTIONS[named[path][0]]} and as "
                    f"{_OPTIONS[split]}: a model cannot be evaluated on its training data. Name "
                    "it once."
                )
            named[path] = split, source
    # once more together, so that all sources have different names
    sources = expand_sources([source.path for _, source in named.values()])
    roles = {source.name: named[Path(source.path).resolve()][0] for source in sources}
    from fairchem_kit.data.frames import LabelOptions

    options = LabelOptions(**labels)
    pbc = [_look(source, options) for source in sources]
    return Inputs(sources, roles, options, pbc[0])


def _look(source: Source, labels: LabelOptions) -> str:
    """The periodicity of the first frame.

    A wrong key is wrong in every frame: report it once, before everything is read.
    """
    from fairchem_kit.data.frame_files import iter_frames
    from fairchem_kit.data.labels import energy_of, forces_of

    for number, atoms in iter_frames(source, [0]):
        if isinstance(atoms, Exception):
            raise FitError(f"{source.path}: {not_read(atoms)}")
        missing = []
        for label_of, key in ((energy_of, labels.energy_key), (forces_of, labels.forces_key)):
            try:
                label_of(atoms, key)
            except FrameError as error:
                # any other fault may be in this frame only; the conversion finds all of them
                if str(error).startswith(("no energy", "no forces")):
                    missing.append(str(error))
        if missing:
            raise FitError(f"{source.path}: frame {number}: {'; '.join(missing)}")
        return "".join("T" if periodic else "F" for periodic in atoms.pbc)
    raise FitError(f"{source.path}: there are no frames in it")


def default_folder(inputs: Sequence[str]) -> Path:
    """``frames.extxyz.gz`` -> ``frames_fit`` in the current directory.

    Raises:
        FitError: for a pattern, which cannot be a name.
    """
    path = Path(inputs[0])
    name = path.name.split(".")[0] if not path.is_dir() else path.resolve().name
    if not name or any(sign in name for sign in "*?["):
        raise FitError(f"{inputs[0]}: name the folder for the result with --out DIR.")
    return Path(f"{name}_fit")
