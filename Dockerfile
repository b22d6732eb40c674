# Two images from one file:
#   docker build --target operator -t evomerge-operator .      small, no torch
#   docker build --target worker   -t evomerge-worker .        torch and all that a candidate needs
# BASE is any Debian or Ubuntu with Python 3.11 or newer; Python is installed where it lacks one.
# UV_TORCH_BACKEND=cpu (or cu128, …) chooses another build of torch than plain PyPI's.
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS base
RUN command -v python3 || { \
        apt-get update && apt-get install --yes --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*; }

# uv, which is lent to the images while they are built and stays in none.
FROM base AS build
# The certificates with which package registries are reached, where a proxy has its own.
ARG SSL_CERT_FILE
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/* && \
    python3 -m venv /opt/build/uv && \
    PIP_CERT=${SSL_CERT_FILE} /opt/build/uv/bin/pip install --quiet --no-cache-dir "uv>=0.9"
ENV PATH=/opt/build/uv/bin:$PATH UV_CACHE_DIR=/var/cache/uv
# `install FILE`: those packages into /opt/evomerge, beside /opt/app, our own code.
# Images run with a read-only root: bytecode is written now or never. No cache: the layer itself keeps what was
# downloaded, for as long as its list is the same, and a second copy of torch would be gigabytes.
RUN printf '%s\n' '#!/bin/sh -eu' \
        'export PATH=/opt/build/uv/bin:$PATH VIRTUAL_ENV=/opt/evomerge UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1' \
        'uv venv --quiet --python "$(command -v python3)" "$VIRTUAL_ENV"' \
        'echo /opt/app > "$(echo "$VIRTUAL_ENV"/lib/python3*/site-packages)/app.pth"' \
        'uv pip install --quiet --no-deps --requirement "$1"' \
        > /opt/build/uv/bin/install && chmod +x /opt/build/uv/bin/install

FROM scratch AS tools
COPY --from=build /opt/build/uv /

# What each of the images needs, as lists: its big layer changes when its list does, not with every line of
# pyproject.toml.
FROM build AS lists
ARG SSL_CERT_FILE
ARG UV_TORCH_BACKEND
COPY pyproject.toml constraints.txt /src/
RUN --mount=type=cache,target=/var/cache/uv \
    cd /src && for extra in operator worker; do \
        uv pip compile --quiet --no-header --no-annotate --constraint constraints.txt pyproject.toml \
            --extra $extra --output-file /opt/build/$extra.txt || exit 1; \
    done

# What we wrote, for both.
FROM build AS app
ARG SSL_CERT_FILE
# For the compiled loops of the merges; they choose the instructions of the CPU they run on.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE /src/
COPY operator /src/operator
COPY worker /src/worker
# The environment is there for its path alone, which the scripts name.
RUN --mount=type=cache,target=/var/cache/uv \
    export UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 && uv venv --quiet /opt/evomerge && \
    uv pip install --quiet --python /opt/evomerge --no-deps --target /opt/app /src

FROM base AS operator
LABEL org.opencontainers.image.title="evomerge-operator" \
      org.opencontainers.image.description="Evolves merges of models on Kubernetes: the operator"
COPY --from=lists /opt/build/operator.txt /usr/share/evomerge/packages.txt
ARG SSL_CERT_FILE
RUN --mount=type=bind,from=tools,target=/opt/build/uv \
    /opt/build/uv/bin/install /usr/share/evomerge/packages.txt
COPY --from=app /opt/app /opt/app
ENV PATH=/opt/app/bin:/opt/evomerge/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 65532:65532
ENTRYPOINT ["evomerge-operator"]
ARG VERSION=0.1.0
ARG REVISION
LABEL org.opencontainers.image.version=${VERSION} org.opencontainers.image.revision=${REVISION}

FROM base AS worker
LABEL org.opencontainers.image.title="evomerge-worker" \
      org.opencontainers.image.description="Evolves merges of models on Kubernetes: merges and evaluates candidates"
COPY --from=lists /opt/build/worker.txt /usr/share/evomerge/packages.txt
ARG SSL_CERT_FILE
ARG UV_TORCH_BACKEND
RUN --mount=type=bind,from=tools,target=/opt/build/uv \
    /opt/build/uv/bin/install /usr/share/evomerge/packages.txt
COPY --from=app /opt/app /opt/app
ENV PATH=/opt/app/bin:/opt/evomerge/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false
WORKDIR /tmp
USER 65532:65532
ENTRYPOINT ["evomerge-worker"]
ARG VERSION=0.1.0
ARG REVISION
LABEL org.opencontainers.image.version=${VERSION} org.opencontainers.image.revision=${REVISION}
