# The tools for one major version of PostgreSQL: client and server of that major, and the operator's binary to drive them.
# From the root of the checkout:
#   docker build -f images/tools.Dockerfile --build-arg DEBIAN=bookworm --build-arg POSTGRESQL=15 \
#       -t registry.arca.run/memoria-operator/tools:0.1.0-pg15 .
#   docker build -f images/tools.Dockerfile --build-arg DEBIAN=trixie --build-arg POSTGRESQL=17 \
#       --build-arg EXTENSIONS=postgresql-17-pgvector -t registry.arca.run/memoria-operator/tools:0.1.0-pg17 .
# EXTENSIONS: packages of extensions that your database uses. Without them no snapshot of it can be restored and proved.

ARG DEBIAN=bookworm
ARG OPERATOR=registry.arca.run/memoria-operator/operator:0.1.0

FROM ${OPERATOR} AS operator

FROM docker.io/library/debian:${DEBIAN}-slim AS postgresql
ARG POSTGRESQL=15
ARG EXTENSIONS=
# - postgresql-common would make a cluster of its own at installation.
# - The just-in-time compiler is 180 MB of LLVM and Z3, and the server works without its files.
# - libnss-wrapper: see images/initdb.
RUN groupadd --gid 999 postgres \
    && useradd --uid 999 --gid 999 --no-create-home --home-dir /var/lib/postgresql --shell /bin/sh postgres \
    && groupadd --gid 1000 memoria \
    && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin memoria \
    && groupadd --gid 65532 nonroot \
    && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin nonroot \
    && mkdir /etc/postgresql-common \
    && echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        -o DPkg::Options::=--force-confold \
        -o DPkg::Options::=--path-exclude='/usr/lib/*/libLLVM*' \
        -o DPkg::Options::=--path-exclude='/usr/lib/llvm-*' \
        -o DPkg::Options::=--path-exclude='/usr/lib/*/libz3.*' \
        -o DPkg::Options::=--path-exclude='/usr/lib/postgresql/*/lib/bitcode/*' \
        -o DPkg::Options::=--path-exclude='/usr/lib/postgresql/*/lib/llvmjit*' \
        ca-certificates libnss-wrapper "postgresql-${POSTGRESQL}" "postgresql-client-${POSTGRESQL}" \
        ${EXTENSIONS} \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/*.log /var/log/apt
# Debian's own /usr/bin/psql is a Perl program that guesses the version; these are the real ones.
ENV PATH=/usr/local/bin:/usr/lib/postgresql/${POSTGRESQL}/bin:/usr/bin:/bin \
    LANG=C.UTF-8
COPY --chmod=755 images/initdb /usr/local/bin/initdb

FROM postgresql AS runtime
LABEL org.opencontainers.image.title="memoria-operator tools" \
      org.opencontainers.image.source="https://github.com/arca-futura/memoria-operator" \
      org.opencontainers.image.licenses="Apache-2.0 AND PostgreSQL"
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/memoria-operator"]

# Last, because this alone changes from build to build. `cargo xtask images` reads this line.
FROM runtime
COPY --from=operator /usr/local/bin/memoria-operator /usr/local/bin/memoria-operator
