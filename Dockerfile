# ndem_ocp with the versions of requirements/, for one machine or a cluster that runs containers.
#
#   docker build -t ndem-ocp .                                            # CPU
#   docker build -t ndem-ocp --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   docker run --rm --gpus all -v "$PWD:/work" ndem-ocp ndem doctor
#
# Continuous integration does not build this file.
FROM python:3.11-slim

# Where torch comes from: its CPU build, or the CUDA build of the driver (docs/install.md).
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

RUN apt-get update \
    && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/ndem_ocp
COPY requirements requirements
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" -r requirements/torch.txt \
    && pip install --no-cache-dir -r requirements/default.lock \
    && pip install --no-cache-dir --no-deps -r requirements/host.txt

# Installed from here, so that configs/ and the demo are beside the package.
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e .

# Whoever the container runs as may write: caches go to /tmp, results to the mounted folder.
ENV HOME=/tmp WANDB_MODE=offline
WORKDIR /work
CMD ["ndem", "--help"]
