# branchline on a CPU. Build it in the root of the repository:
#   docker build -f assets/deploy/cpu.Dockerfile -t branchline:cpu .
# torch's CPU build comes from its own index; name another one with --build-arg TORCH_INDEX=…
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# The native kernels are compiled on first use, for the processor they run on.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/branchline
COPY pyproject.toml README.md LICENSE ./
COPY branchline branchline
COPY lang lang
COPY runtime runtime
COPY kernels kernels
COPY examples examples
COPY assets assets
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.11,<2.14" \
    && pip install --no-cache-dir ".[runtime,grpc,tracing]"

RUN useradd --create-home --uid 1000 branchline && mkdir /cache && chown branchline /cache
USER branchline
ENV BRANCHLINE_CACHE=/cache
VOLUME /cache
EXPOSE 30000
STOPSIGNAL SIGTERM
# A container is reached from outside, so it listens on all addresses. Give it API keys.
ENTRYPOINT ["branchline", "serve", "--host", "0.0.0.0", "--port", "30000"]
CMD ["--model", "smollm2-135m"]
