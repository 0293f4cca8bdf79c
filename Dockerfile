# syntax=docker/dockerfile:1
# EasyEdit on a CPU. Build it, with TORCH_INDEX naming an index of CPU wheels of torch (without it the image gets
# the CUDA build, several GB):
#   docker build --build-arg TORCH_INDEX=URL -t easyedit .
#   docker run --rm -p 127.0.0.1:7860:7860 -v easyedit-cache:/cache easyedit
FROM python:3.11-slim AS build

ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/easyedit
ENV PATH=/opt/easyedit/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
# torch first and alone: the pinned build, never whatever another package would drag in.
RUN pip install --only-binary=:all: ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --only-binary=:all: -c constraints.txt ".[gguf,ui,serve,bench]"

FROM python:3.11-slim
# Any user may write to /cache, and HOME is there, so that --user works.
RUN useradd --uid 10001 easyedit && install -d -m 1777 /cache && install -d -o 10001 /edits
COPY --from=build /opt/easyedit /opt/easyedit
ENV PATH=/opt/easyedit/bin:$PATH \
    HOME=/cache USER=easyedit \
    EASYEDITOR_CACHE=/cache/easyeditor \
    HF_HOME=/cache/huggingface
USER 10001
WORKDIR /edits
VOLUME /cache
EXPOSE 7860 8000
HEALTHCHECK --start-period=300s --interval=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7860', timeout=5)"]
ENTRYPOINT ["easyedit"]
CMD ["ui", "--host", "0.0.0.0"]
