"""The origin of a result: commit, command, configuration, data, hardware."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


def git_commit(root: Path) -> str:
    """Commit of the checkout at ``root``, with "-dirty" if tracked files were changed.

    Changes in results/ do not count: measurements write there, and none reads it.
    """

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def config_hash(config: dict[str, Any]) -> str:
    """First 12 hex digits of the SHA-256 of the resolved configuration."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def files_hash(directory: Path, pattern: str = "*.lmdb") -> str:
    """First 12 hex digits of the SHA-256 over the contents of a data set's files, in order of
    name."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob(pattern)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]


def data_hash(path: Path, read_up_to: int = 4 * 2**30) -> str | None:
    """Hash of the contents of a split's files, or of their names and sizes if they are too large.

    Args:
        path: a folder of LMDBs, or one file. read_up_to: bytes.

    Returns:
        12 hex digits, after ``names-and-sizes:`` if so; None if there is no such file.
    """
    folder, pattern = (path, "*.lmdb") if path.is_dir() else (path.parent, glob.escape(path.name))
    files = sorted(folder.glob(pattern))
    if not files:
        return None
    if sum(file.stat().st_size for file in files) <= read_up_to:
        return files_hash(folder, pattern)
    listed = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
    return f"names-and-sizes:{hashlib.sha256(listed.encode()).hexdigest()[:12]}"


def hardware() -> dict[str, Any]:
    """Processor, cores, threads and GPUs of this machine, and relevant versions."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "gpus": gpus,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def provenance(root: Path) -> dict[str, Any]:
    """Commit, command line, time (UTC) and hardware of the running program."""
    return {
        "commit": git_commit(root),
        "command": " ".join(["python", *_program(), *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "hardware": hardware(),
    }


def _program() -> list[str]:
    """How the running program was named: ``-m MODULE``, or its file."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["-m", spec.name] if spec else [*map(os.path.relpath, sys.argv[:1])]
