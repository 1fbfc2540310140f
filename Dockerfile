# videossl for NVIDIA GPUs. The registry's torch wheels bring their own CUDA libraries, so the base needs none:
# the host gives the driver (NVIDIA Container Toolkit) and this image everything else.
#
#   docker build -t videossl .
#   docker run --rm --init --gpus all --ipc=host -v /path/to/videos:/data:ro -v videossl-runs:/workspace/runs \
#     --entrypoint torchrun videossl --nproc_per_node=8 -m videossl train --config real_small \
#     data.manifest=runs/videos.parquet out=runs/first
#
# --ipc=host: the processes of several GPUs talk through shared memory, of which Docker gives 64 MB.
# Another base must be bookworm too: the names of FFmpeg's libraries below are its own.
ARG BASE_IMAGE=debian:bookworm-slim

# The project's wheel and the list of what it depends on; nothing else of this stage is kept.
FROM ${BASE_IMAGE} AS wheel
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /venv
WORKDIR /source
COPY LICENSE README.md pyproject.toml ./
RUN python3 -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], sep='\n')" > /requirements.txt
COPY videossl videossl
RUN /venv/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE_IMAGE}
# Versions are the release's own: a pinned one is gone from Debian's mirrors at the next security update.
# libav*, libsw*: the FFmpeg that torchcodec loads. Not the `ffmpeg` package: its command is never called.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates \
        libavcodec59 \
        libavdevice59 \
        libavfilter8 \
        libavformat59 \
        libavutil57 \
        libswresample4 \
        libswscale6 \
        python3 \
        python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/videossl \
    && useradd --create-home --uid 1000 --user-group videossl
ENV PATH=/opt/videossl/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    PYTHONUNBUFFERED=1

# Copied from the other stage, the list's content alone decides whether torch is installed again.
COPY --from=wheel /requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir -r /tmp/requirements.txt

COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-cache-dir --no-deps /tmp/wheels/*.whl

WORKDIR /workspace
# Owned, not only readable: a checkout may give others no right to read.
COPY --chown=1000:1000 tools tools
# A named volume mounted on runs/ takes over this owner.
RUN mkdir runs && chown 1000:1000 . runs
# A number, so that a host can tell without this image's passwd file that it is not root's.
USER 1000:1000
ENTRYPOINT ["videossl"]
CMD ["--help"]
