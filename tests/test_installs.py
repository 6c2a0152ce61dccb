"""The files of other ways to install name what is there. `.ci/installs.py` tries a wheel."""

from __future__ import annotations

import re
import shlex

import yaml

import ndem_ocp
from conftest import ROOT


def test_the_conda_environment_is_that_of_make_env():
    text = (ROOT / "environment.yml").read_text()
    found = yaml.safe_load(text)
    python = next(d for d in found["dependencies"] if str(d).startswith("python="))
    wanted = re.search(r"PYTHON \?= python(\S+)", (ROOT / "Makefile").read_text())
    assert python == f"python={wanted[1]}"
    (pip,) = (d["pip"] for d in found["dependencies"] if isinstance(d, dict))
    files = [line.split()[1] for line in pip] + re.findall(r"-r (\S+)", text)
    assert {"requirements/torch.txt", "requirements/default.lock", "requirements/host.txt"} == set(
        files
    )
    assert all((ROOT / file).is_file() for file in files)


def test_the_image_installs_what_make_env_installs():
    text = (ROOT / "Dockerfile").read_text()
    steps = text.replace("\\\n", " ").splitlines()
    assert next(s for s in steps if s.startswith("FROM")) == "FROM python:3.11-slim"
    asked = [re.sub(r"--no-cache-dir ", "", s) for s in steps if "pip install" in s]
    lines = (ROOT / "Makefile").read_text()
    for options in (
        "-r requirements/torch.txt",
        "-r requirements/default.lock",
        "--no-deps -r requirements/host.txt",
        "--no-deps --no-build-isolation -e .",
    ):
        assert any(options in s for s in asked), options
        assert options in lines
    copied = [shlex.split(s)[1] for s in steps if s.startswith("COPY")]
    assert all((ROOT / name).exists() for name in copied)


def test_versions_agree():
    setup = (ROOT / "setup.py").read_text()
    assert f'version="{ndem_ocp.__version__}"' in setup
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation.get("version", ndem_ocp.__version__)) == ndem_ocp.__version__
