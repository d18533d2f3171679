# syntax=docker/dockerfile:1

# One build makes both programs: `docker build --target ingestor .` and `docker build --target api .`.
# It needs BuildKit (the default since Docker 23), whose cache mounts keep compiled dependencies between builds.

FROM rust:1.95.0-bookworm AS builder
# Versions are not pinned: Debian removes old versions from its archive, so pinned ones would break the build within weeks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ libcurl4-openssl-dev libpq-dev libssl-dev pkg-config \
        zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The target folder is a cache mount and not part of the image, so the programs are copied out of it in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked -p ingestor -p api \
    && install -D -t /out target/release/ingestor target/release/api

FROM debian:bookworm-slim AS runtime
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libcurl4 libpq5 libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/*
# A number, so that Kubernetes' runAsNonRoot can check it. No account is needed for it.
USER 10001:10001
WORKDIR /
STOPSIGNAL SIGTERM

FROM runtime AS ingestor
LABEL org.opencontainers.image.title="ingestor" \
      org.opencontainers.image.description="Stores the orders of a Kafka topic in PostgreSQL, each exactly once" \
      org.opencontainers.image.licenses="MIT"
COPY --from=builder /out/ingestor /usr/local/bin/ingestor
# Loopback would be the container's own. Who may reach the port is decided where the port is published.
ENV INGESTOR_HOST=0.0.0.0 INGESTOR_PORT=8082
EXPOSE 8082
HEALTHCHECK --interval=10s --timeout=4s --start-period=30s --retries=3 CMD ["ingestor", "livez"]
ENTRYPOINT ["ingestor"]
CMD ["run"]

FROM runtime AS api
LABEL org.opencontainers.image.title="api" \
      org.opencontainers.image.description="Serves orders over HTTP from a cache that the database's events keep correct" \
      org.opencontainers.image.licenses="MIT"
COPY --from=builder /out/api /usr/local/bin/api
# As above. If it is bound to more than loopback, the api refuses writes unless API_TOKEN or ALLOW_UNAUTHENTICATED_WRITES is
# set.
ENV SERVER_HOST=0.0.0.0 SERVER_PORT=8081
EXPOSE 8081
# Asks on the operators' port, which clients cannot take away.
HEALTHCHECK --interval=10s --timeout=4s --start-period=30s --retries=3 CMD ["api", "livez"]
ENTRYPOINT ["api"]
