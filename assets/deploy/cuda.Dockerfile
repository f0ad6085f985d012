# branchline on NVIDIA GPUs. Build it in the root of the repository:
#   docker build -f assets/deploy/cuda.Dockerfile -t branchline:cuda .
# The development image: some kernels are compiled on first use and kept in /cache.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv g++ \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/venv/bin:$PATH
RUN python3 -m venv /opt/venv

WORKDIR /opt/branchline
COPY pyproject.toml README.md LICENSE ./
COPY branchline branchline
COPY lang lang
COPY runtime runtime
COPY kernels kernels
COPY examples examples
COPY assets assets
RUN pip install --no-cache-dir ".[runtime,cuda,grammars,grpc,tracing]"

RUN useradd --create-home --uid 1001 branchline && mkdir /cache && chown branchline /cache
USER branchline
ENV BRANCHLINE_CACHE=/cache
VOLUME /cache
EXPOSE 30000
STOPSIGNAL SIGTERM
ENTRYPOINT ["branchline", "serve", "--host", "0.0.0.0", "--port", "30000"]
CMD ["--model", "smollm2-135m"]
