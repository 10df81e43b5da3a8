# slm as a server: docs/container.md. scripts/container_check.py runs these steps where there is no container engine.
#   docker build -t slm-cpu .                                  from the network; compiles llama.cpp
#   docker build -t slm-cpu --build-arg WHEELS=wheelhouse .    from what `make wheelhouse` collected; compiles nothing

FROM debian:bookworm-slim AS build
# A folder of the context that `make wheelhouse` made; empty: the package index.
ARG WHEELS=
# Extras of the package, such as rag or train,rag. A wheelhouse has to have been made with them.
ARG EXTRAS=
# With the extras rag and train: the index of torch for CPUs, which pytorch.org names; else gigabytes for GPUs may come.
ARG PIP_EXTRA_INDEX_URL=
# For any x86-64 processor with AVX2, not only the one that builds; CMAKE_ARGS= compiles for that one.
ARG CMAKE_ARGS=-DGGML_NATIVE=OFF
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential ca-certificates python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python3 -m venv /opt/slm
# The name of a file that is there in any case stands in for no wheelhouse.
COPY constraints.txt ${WHEELS:-constraints.txt} wheels/
COPY constraints.txt ./
COPY slm/__init__.py slm/__init__.py
COPY slm/native slm/native
RUN if [ -z "${WHEELS}" ]; then /opt/slm/bin/python -m slm.native.build; fi
COPY LICENSE README.md pyproject.toml slm_cli.py ./
COPY slm slm
COPY convert convert
COPY train train
COPY serve serve
COPY rag rag
RUN if [ -n "${WHEELS}" ]; then \
      /opt/slm/bin/pip install --no-cache-dir --no-index --find-links wheels -c wheels/constraints.txt "slm-cpu${EXTRAS:+[${EXTRAS}]}"; \
    else \
      /opt/slm/bin/pip install --no-cache-dir -c constraints.txt ".${EXTRAS:+[${EXTRAS}]}"; \
    fi

FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libgomp1 python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --home-dir /models --no-create-home --shell /usr/sbin/nologin slm \
 && install -d -o slm -g slm /models
COPY --from=build /opt/slm /opt/slm
ENV PATH=/opt/slm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    SLM_HOME=/models \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_DISABLE_TELEMETRY=1
WORKDIR /models
VOLUME /models
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python3", "-c", "import urllib.request as ask; ask.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["slm"]
CMD ["serve", "smollm2-135m-instruct", "--host", "0.0.0.0", "--port", "8080", "--api-key-env", "SERVER_API_KEY"]
