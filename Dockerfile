# syntax=docker/dockerfile:1
# The package with its commands, MovieLens-100k and MiniLM.
#
#   docker build --tag llm4rec .                                # for CPUs
#   docker build --tag llm4rec:cuda --build-arg EXTRA=cuda .    # for NVIDIA GPUs
#   docker run --rm --volume "$PWD:/work" llm4rec quickstart --workdir=runs/quickstart
#   docker run --rm --gpus all --volume "$PWD:/work" llm4rec:cuda doctor
#
# CUDA and cuDNN come as wheels with jax, so both start from the same image; the host needs NVIDIA's driver and container
# toolkit.
FROM python:3.13-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.13-slim
# Empty, cuda or tpu: an extra of setup.cfg.
ARG EXTRA=
COPY third_party/requirements.txt /tmp/requirements.txt
RUN --mount=type=bind,from=build,source=/dist,target=/dist \
    pip install --no-cache-dir "$(ls /dist/*.whl)${EXTRA:+[$EXTRA]}" \
    && pip install --no-cache-dir --no-deps --require-hashes --requirement /tmp/requirements.txt
RUN useradd --create-home researcher && mkdir /work && chown researcher /work
USER researcher
WORKDIR /work
ENTRYPOINT ["llm4rec"]
