#!/usr/bin/env bash
# Collects wheels in FOLDER (about 7 MB) for a GPU machine without a network. That machine must have
# Python 3.12, torch, torch-geometric, e3nn, numba, scipy, numpy, huggingface-hub, matplotlib,
# tensorboard, requests, tqdm, cloudpickle, pyyaml, setuptools, pip and a C compiler (for Triton);
# the rest is listed here.
#
#   ndem_ocp/bench/gpu/bundle.sh FOLDER       on a machine with a network
#   ndem_ocp/bench/gpu/install.sh FOLDER ENV  on the GPU machine, in a copy of this repository
#   ENV/bin/python -m ndem_ocp.bench.gpu.check
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?folder for the wheels}
python=${PYTHON:-python3}
mkdir -p "$out"
wheels=(fairchem-core==1.10.0 ase==3.29.0 lmdb==1.6.2 submitit==1.5.4 orjson==3.13.0
        hydra-core==1.3.8 omegaconf==2.3.1 torchtnt==0.2.4 pydantic==2.14.3 pydantic-core==2.50.4
        annotated-types==0.8.0 typing-inspection==0.4.5)
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" -d "$out" "${wheels[@]}"
# pure Python, but only published as source
"$python" -m pip wheel -q --no-deps -w "$out" torchmd-net==3.1.0 antlr4-python3-runtime==4.9.3
"$python" "$here/placeholders.py" "$out"
du -sh "$out"
