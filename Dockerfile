# Three images from one file:
#   docker build --target service -t palimpsest-service .    listener and API: no codec, no numba, no torch
#   docker build --target worker  -t palimpsest-worker  .    workers and sweep (can run every command)
#   docker build --target worker-gpu -t palimpsest-worker-gpu .    the same with CUDA's compiler; the driver is the host's
# The base can be replaced, e.g. by a hospital's own hardened image: --build-arg BASE=...
ARG BASE=docker.io/library/python:3.12-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md* ./
COPY codec codec
COPY docs ./docs
COPY gateway gateway
COPY palimpsest palimpsest
COPY service service
COPY stego stego
COPY tests/golden tests/golden
COPY worker worker
RUN python3 -m pip install --no-cache-dir "build>=1.2,<2" \
 && python3 -m build --wheel --outdir /wheels .
# What the service needs is what the wheel needs, less the codec's libraries: read from the wheel, so that it cannot go stale.
# Both images can open a key ring under Vault or KMS.
RUN python3 -m zipfile -e /wheels/*.whl /wheels/unpacked \
 && sed -n 's/^Requires-Dist: //p' /wheels/unpacked/*.dist-info/METADATA \
  | sed -E 's/; extra == "(vault|aws)"//' \
  | grep -v 'extra ==' | grep -v -E '^(numba|imagecodecs|python-gdcm|zstandard|pillow)\b' > /wheels/service.txt

FROM ${BASE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PALIMPSEST_HOME=/var/lib/palimpsest
RUN groupadd --gid 10001 palimpsest \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/palimpsest --create-home palimpsest
VOLUME /var/lib/palimpsest
WORKDIR /var/lib/palimpsest
STOPSIGNAL SIGTERM

FROM base AS service
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python3 -m pip install --no-cache-dir -r /wheels/service.txt \
 && python3 -m pip install --no-cache-dir --no-deps /wheels/*.whl
USER 10001
EXPOSE 11112 8080
ENTRYPOINT ["palimpsest"]
CMD ["serve"]

FROM base AS worker
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python3 -m pip install --no-cache-dir "$(ls /wheels/*.whl)[vault,aws]"
USER 10001
ENTRYPOINT ["palimpsest"]
CMD ["work", "--queues", "index,encode", "--concurrency", "2"]

FROM worker AS worker-gpu
USER 0
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python3 -m pip install --no-cache-dir "$(ls /wheels/*.whl)[gpu]"
USER 10001
CMD ["work", "--queues", "gpu", "--device", "0", "--name", "gpu"]
