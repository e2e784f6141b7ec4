# Three images from one file:
#   docker build --target service    -t palimpsest-service .       listener, API, migrations: no codec, no torch
#   docker build --target worker     -t palimpsest-worker .        workers and sweep; can run every command
#   docker build --target worker-gpu -t palimpsest-worker-gpu .    the same with CUDA's compiler; the driver is the host's
# BASE may be any image with python3 (3.11 or newer) and its venv module, e.g. a hospital's own hardened one:
#   --build-arg BASE=registry.hospital/python@sha256:...
# Versions are pinned by deploy/constraints.txt. Nothing is written at run time but to /var/lib/palimpsest (state, which
# hosts share), /var/local/palimpsest (this host's own) and /tmp: run with a read-only root file system.
ARG BASE=docker.io/library/python:3.12.12-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /src
COPY pyproject.toml README.md ./
COPY codec codec
COPY docs ./docs
COPY gateway gateway
COPY palimpsest palimpsest
COPY service service
COPY stego stego
COPY tests/golden ./tests/golden
COPY worker worker
COPY deploy/constraints.txt /wheels/constraints.txt
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --constraint /wheels/constraints.txt build \
 && PIP_CONSTRAINT=/wheels/constraints.txt /opt/build/bin/python -m build --wheel --outdir /wheels .
# What each image installs beside the wheel is what the wheel names, so it cannot go stale: the service without the codec's
# libraries, the workers with them, and both with every extra that a gateway may be set to use.
RUN python3 -m zipfile -e /wheels/*.whl /wheels/unpacked \
 && sed -n 's/^Requires-Dist: //p' /wheels/unpacked/*.dist-info/METADATA > /wheels/all.txt \
 && sed -E 's/; extra == "(vault|aws|tracing|flower)"//; /extra ==/d' /wheels/all.txt > /wheels/worker.txt \
 && sed -E '/^(numba|llvmlite|imagecodecs|python-gdcm|zstandard|pillow)\b/d' /wheels/worker.txt > /wheels/service.txt \
 && sed -nE 's/; extra == "gpu"//p' /wheels/all.txt > /wheels/gpu.txt

# Libraries first, in layers that stay as they are while only our code changes.
FROM ${BASE} AS venv
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN python3 -m venv /opt/palimpsest
COPY deploy/constraints.txt /wheels/

FROM venv AS service-venv
COPY --from=wheel /wheels/service.txt /wheels/
RUN /opt/palimpsest/bin/pip install --no-cache-dir --constraint /wheels/constraints.txt --requirement /wheels/service.txt
COPY --from=wheel /wheels/*.whl /wheels/
RUN /opt/palimpsest/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
 && /opt/palimpsest/bin/pip uninstall --yes pip

FROM venv AS worker-libraries
COPY --from=wheel /wheels/worker.txt /wheels/
RUN /opt/palimpsest/bin/pip install --no-cache-dir --constraint /wheels/constraints.txt --requirement /wheels/worker.txt

FROM worker-libraries AS worker-venv
COPY --from=wheel /wheels/*.whl /wheels/
RUN /opt/palimpsest/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
 && /opt/palimpsest/bin/pip uninstall --yes pip

FROM worker-libraries AS worker-gpu-venv
COPY --from=wheel /wheels/gpu.txt /wheels/
RUN /opt/palimpsest/bin/pip install --no-cache-dir --constraint /wheels/constraints.txt --requirement /wheels/gpu.txt
COPY --from=wheel /wheels/*.whl /wheels/
RUN /opt/palimpsest/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
 && /opt/palimpsest/bin/pip uninstall --yes pip

FROM ${BASE} AS base
ENV PATH=/opt/palimpsest/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    PALIMPSEST_HOME=/var/lib/palimpsest PALIMPSEST_LOCAL_DIR=/var/local/palimpsest \
    PALIMPSEST_DICOM_HOST=0.0.0.0 PALIMPSEST_HTTP_HOST=0.0.0.0
RUN groupadd --gid 10001 palimpsest \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/palimpsest --shell /usr/sbin/nologin palimpsest \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/palimpsest /var/local/palimpsest
WORKDIR /var/lib/palimpsest
VOLUME ["/var/lib/palimpsest", "/var/local/palimpsest"]
STOPSIGNAL SIGTERM
USER 10001:10001
ENTRYPOINT ["palimpsest"]

FROM base AS service
COPY --from=service-venv /opt/palimpsest /opt/palimpsest
EXPOSE 11112 2762 8080
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=4 CMD ["palimpsest", "healthy", "api"]
CMD ["serve"]

FROM base AS worker
COPY --from=worker-venv /opt/palimpsest /opt/palimpsest
HEALTHCHECK --interval=60s --timeout=20s --start-period=120s --retries=3 CMD ["palimpsest", "healthy", "worker"]
CMD ["work", "--queues", "index,encode", "--concurrency", "2"]

FROM base AS worker-gpu
COPY --from=worker-gpu-venv /opt/palimpsest /opt/palimpsest
HEALTHCHECK --interval=60s --timeout=20s --start-period=600s --retries=3 CMD ["palimpsest", "healthy", "worker"]
CMD ["work", "--queues", "gpu", "--device", "0", "--name", "gpu"]
