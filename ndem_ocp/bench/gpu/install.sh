#!/usr/bin/env bash
# Makes an environment on a GPU machine without a network. It uses the packages of the machine's
# Python, plus the wheels of bundle.sh and this repository.
#
#   ndem_ocp/bench/gpu/install.sh WHEELS ENV        ->  ENV/bin/python, ndem, fairchem
set -euo pipefail
wheels=${1:?folder of wheels}; target=${2:?folder of the environment}
project=$(cd "$(dirname "$0")/../../.." && pwd)
base=${PYTHON:-python3}
site='import sysconfig; print(sysconfig.get_paths()["purelib"])'
"$base" -m venv --without-pip "$target"
own=$("$target/bin/python" -c "$site")
# unlike PYTHONPATH, this also runs .pth files of these packages
printf 'import site; site.addsitedir(%s)\n' "'$("$base" -c "$site")'" > "$own/zz_machine.pth"
# --no-compile: Python compiles what it imports, which is a small part of ase and fairchem
"$target/bin/python" -m pip install -q --no-index --no-deps --disable-pip-version-check \
    --no-compile --no-build-isolation "$wheels"/*.whl -e "$project"
