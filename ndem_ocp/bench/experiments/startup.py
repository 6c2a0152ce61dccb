"""Start-up times of commands and imports: processor seconds, the best of several tries.

    python -m ndem_ocp.bench.experiments.startup

Wall time is longer if Python is on a slow network disk. tests/test_startup.py checks the
cause: which packages are imported.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

NDEM = ["-m", "ndem_ocp.cli"]
CASES = {
    "python, nothing": ["-c", "pass"],
    "import ndem_ocp": ["-c", "import ndem_ocp"],
    "import torch": ["-c", "import torch"],
    "import ndem_ocp.method": ["-c", "import ndem_ocp.method"],
    "ndem --help": [*NDEM, "--help"],
    "ndem --version": [*NDEM, "--version"],
    "ndem nonsense": [*NDEM, "nonsense"],
    "ndem train --help": [*NDEM, "train", "--help"],
    "ndem eval absent.pt ...": [*NDEM, "eval", "absent.pt", "--data", "."],
    "ndem train absent.yml": [*NDEM, "train", "absent.yml"],
    "all that fairchem registers": ["-c", "import ndem_ocp; ndem_ocp.register()"],
}


def seconds(words: list[str], folder: str) -> float:
    """Processor time of one start, including child processes."""
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=folder, stdout=nowhere, stderr=nowhere
        )
        _, _, used = os.wait4(process.pid, 0)
        process.returncode = 0  # already waited for
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=3)
    tries = parser.parse_args().tries
    with tempfile.TemporaryDirectory() as folder:
        for name, words in CASES.items():
            best = min(seconds(words, folder) for _ in range(tries))
            print(f"{name:<30}{best:6.2f} s", flush=True)


if __name__ == "__main__":
    main()
