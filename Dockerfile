# One build makes both programs: `docker build --target ingestor .` and `docker build --target api .`.
# It needs BuildKit (the default since Docker 23), whose cache mounts keep compiled dependencies between builds. What every
# BuildKit knows is enough, so there is no syntax line, which would fetch a frontend.
#
# The images contain a program, the libraries that it loads, the CA certificates, and nothing that could run anything else. So
# there is no shell: use `docker exec CONTAINER api livez`, and a container of another image for anything more.

FROM rust:1.95.0-bookworm AS builder
# Versions are not pinned: Debian removes old versions from its archive, so pinned ones would break the build within weeks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ libcurl4-openssl-dev libpq-dev libssl-dev pkg-config \
        zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
# auditable puts the list of all crates into the program, where scanners find it even if the program is copied elsewhere.
# cyclonedx writes the same list with licences and hashes, for people and tools that read files (an SBOM).
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo install --locked cargo-auditable@0.7.7 cargo-cyclonedx@0.5.9
WORKDIR /src
COPY . .
# The target folder is a cache mount and not part of the image, so the programs are copied out of it in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo auditable build --release --locked -p ingestor -p api \
    && SOURCE_DATE_EPOCH=0 cargo cyclonedx --quiet --format json \
    && for program in ingestor api; do \
        install -D -t "/out/$program/usr/local/bin" "target/release/$program" \
        && install -D -m 644 -t "/out/$program/usr/share/sbom" "$program/$program.cdx.json" || exit 1; \
    done

FROM debian:bookworm-slim AS libraries
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libcurl4 libpq5 libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/*
COPY --chmod=755 deploy/image-root.sh /usr/local/bin/image-root

FROM libraries AS ingestor-root
COPY --from=builder /out/ingestor /image
RUN image-root /image

FROM libraries AS api-root
COPY --from=builder /out/api /image
RUN image-root /image

FROM scratch AS runtime
ENV PATH=/usr/local/bin
# A number, so that Kubernetes' runAsNonRoot can check it.
USER 10001:10001
WORKDIR /
STOPSIGNAL SIGTERM

FROM runtime AS ingestor
COPY --from=ingestor-root /image /
# Loopback would be the container's own. Who may reach the port is decided where the port is published.
ENV INGESTOR_HOST=0.0.0.0 INGESTOR_PORT=8082
EXPOSE 8082
HEALTHCHECK --interval=10s --timeout=4s --start-period=30s --retries=3 CMD ["ingestor", "livez"]
ENTRYPOINT ["ingestor"]
CMD ["run"]
# The workspace's version, and the commit: --build-arg REVISION="$(git rev-parse HEAD)". They come last, so that another commit
# does not build the layers above again.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ingestor" \
      org.opencontainers.image.description="Stores the orders of a Kafka topic in PostgreSQL, each exactly once" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"

FROM runtime AS api
COPY --from=api-root /image /
# As above. If it is bound to more than loopback, the api refuses writes unless API_TOKEN or ALLOW_UNAUTHENTICATED_WRITES is
# set.
ENV SERVER_HOST=0.0.0.0 SERVER_PORT=8081
EXPOSE 8081
# Asks on the operators' port, which clients cannot take away.
HEALTHCHECK --interval=10s --timeout=4s --start-period=30s --retries=3 CMD ["api", "livez"]
ENTRYPOINT ["api"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="api" \
      org.opencontainers.image.description="Serves orders over HTTP from a cache that the database's events keep correct" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
