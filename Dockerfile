# Two images: `docker build --target cpu .` and `docker build --target gpu .`; docs/docker.md says how to use them.
#
# They differ by what is set up here, down to "gpu-base", and by nothing else: both have the same stages, line by line,
# which tests/deploy/test_dockerfile.py compares. (A stage cannot have its base chosen by the --target.)
ARG CPU_BASE=python:3.11.15-slim-bookworm
ARG CPU_EXTRAS=service,otel
# Not slim: Triton, which vLLM uses, compiles C when it runs. CUDA comes with torch, the driver from the host.
ARG GPU_BASE=python:3.11.15-bookworm
ARG GPU_EXTRAS=service,explain,otel
ARG VERSION=0.2.0
ARG REVISION=unknown

FROM ${CPU_BASE} AS cpu-base

FROM ${GPU_BASE} AS gpu-base
# What the NVIDIA container runtime puts into the container.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The wheel of this repository: pure Python, so one for both. What the PIP_ arguments and the secret say stays in stages
# that are thrown away.
FROM cpu-base AS wheel
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
COPY constraints/build.txt ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m pip install --no-cache-dir --target /backend --requirement build.txt
COPY pyproject.toml README.md LICENSE NOTICE.md ./
COPY client client
COPY service service
COPY training training
RUN PYTHONPATH=/backend python3 -m pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheel .

FROM cpu-base AS cpu-venv
ARG CPU_EXTRAS
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY --from=wheel /wheel /install
COPY deploy/image/install.sh constraints/cpu.txt /install/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    sh /install/install.sh "${CPU_EXTRAS}" /install/cpu.txt

FROM cpu-base AS cpu
# A tmpfs takes the mode of the folder that it covers, and not its owner: hence 1777.
RUN groupadd --gid 10001 jrm \
 && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /cache --shell /usr/sbin/nologin jrm \
 && install --directory --owner=10001 --group=10001 --mode=1777 /cache
COPY --from=cpu-venv /opt/jrm /opt/jrm
COPY deploy/image/ready.py /opt/jrm/
# All that is written goes below /cache, or /tmp: everything else may be read-only.
ENV PATH=/opt/jrm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache XDG_CACHE_HOME=/cache VLLM_CACHE_ROOT=/cache/vllm \
    TRITON_CACHE_DIR=/cache/triton TORCHINDUCTOR_CACHE_DIR=/cache/inductor
WORKDIR /cache
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Many GiB of weights may load for minutes; a server that is ready before that is healthy before that.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m CMD ["python3", "-I", "/opt/jrm/ready.py"]
ENTRYPOINT ["jrm"]
CMD ["serve", "--host", "0.0.0.0"]
ARG CPU_BASE
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="jrm-serve" \
      org.opencontainers.image.description="Reward server for image-editing RL: serves Joint Reward Modeling checkpoints" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}-cpu" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${CPU_BASE}"

FROM gpu-base AS gpu-venv
ARG GPU_EXTRAS
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY --from=wheel /wheel /install
COPY deploy/image/install.sh constraints/gpu.txt /install/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    sh /install/install.sh "${GPU_EXTRAS}" /install/gpu.txt

FROM gpu-base AS gpu
RUN groupadd --gid 10001 jrm \
 && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /cache --shell /usr/sbin/nologin jrm \
 && install --directory --owner=10001 --group=10001 --mode=1777 /cache
COPY --from=gpu-venv /opt/jrm /opt/jrm
COPY deploy/image/ready.py /opt/jrm/
ENV PATH=/opt/jrm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache XDG_CACHE_HOME=/cache VLLM_CACHE_ROOT=/cache/vllm \
    TRITON_CACHE_DIR=/cache/triton TORCHINDUCTOR_CACHE_DIR=/cache/inductor
WORKDIR /cache
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m CMD ["python3", "-I", "/opt/jrm/ready.py"]
ENTRYPOINT ["jrm"]
CMD ["serve", "--host", "0.0.0.0"]
ARG GPU_BASE
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="jrm-serve" \
      org.opencontainers.image.description="Reward server for image-editing RL: serves Joint Reward Modeling checkpoints" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}-gpu" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${GPU_BASE}"

# Without a --target: the small one.
FROM cpu AS default
