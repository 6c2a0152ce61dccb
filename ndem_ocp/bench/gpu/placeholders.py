"""Make a small wheel that replaces two packages which are too large to copy to an offline machine.

These are wandb, any use of which gives an error message, and Warp, which torchmd-net's TensorNet
needs but its ET does not.

    python placeholders.py FOLDER        ->  FOLDER/gpu_check_placeholders-1.0-py3-none-any.whl
"""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

WANDB = '''"""Not wandb: a placeholder on a machine without a network."""

__version__ = "0.0.0"
run = None


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise RuntimeError(f"wandb.{name}: wandb is not on this machine; set logger.inner to null.")
'''

WARP = '''"""Not Warp: torchmd-net's modules can be imported, kernels of Warp do not run."""

import types

__version__ = "0.0.0"
LOG_WARNING = 30
config = types.SimpleNamespace(log_level=20, quiet=True, verbose=False)


class _Anything:
    """Takes every use of Warp in annotations and decorators."""

    def __call__(self, *given, **named):
        return given[0] if len(given) == 1 and callable(given[0]) and not named else self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key):
        return self

    def __or__(self, other):
        return self

    __ror__ = __mul__ = __rmul__ = __add__ = __radd__ = __or__


def init():
    pass


def launch(*given, **named):
    raise RuntimeError("Warp is not on this machine: TensorNet does not run here.")


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything()
'''

INFO = "gpu_check_placeholders-1.0.dist-info"
FILES = {
    "wandb/__init__.py": WANDB,
    "warp/__init__.py": WARP,
    f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: gpu-check-placeholders\nVersion: 1.0\n",
    f"{INFO}/WHEEL": (
        "Wheel-Version: 1.0\nGenerator: placeholders\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    ),
}


def main() -> int:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    record = ""
    for name, text in FILES.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{name},sha256={digest.decode()},{len(text.encode())}\n"
    record += f"{INFO}/RECORD,,\n"
    wheel = folder / "gpu_check_placeholders-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {**FILES, f"{INFO}/RECORD": record}.items():
            archive.writestr(name, text)
    print(wheel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
