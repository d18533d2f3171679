"""Checks this project's own rules for Dockerfile, docker-compose.yaml and .env.example.

check.sh calls it with the Compose model, in which every variable has its default.
"""

import ipaddress
import json
import re
import sys
from pathlib import Path

PROGRAMS = ("ingestor", "api")
CONTAINER_NAMES = {"postgres": "myapp_postgres", "kafka": "myapp_kafka"}
PORTS = {"kafka": "9092", "kafka-ui": "8080", "ingestor": "8082", "api": "8081"}
# Variables of the README's configuration table. All others are found in the sources of the programs.
DOCUMENTED = """
    DB_HOST DB_PORT DB_USER DB_PASSWORD DB_NAME DB_SSLMODE DB_SSLROOTCERT DB_POOL_SIZE SERVER_HOST SERVER_PORT OPS_HOST OPS_PORT
    CACHE_CAPACITY CACHE_CAPACITY_MB CACHE_WARMUP CACHE_LEASE_MS API_TOKEN ALLOWED_HOSTS TRUSTED_PROXIES LOG_ACCESS KAFKA_BROKERS KAFKA_TOPIC KAFKA_GROUP_ID KAFKA_DLQ_TOPIC
    KAFKA_CONFIG INGESTOR_HOST INGESTOR_PORT BATCH_MAX_RECORDS BATCH_MAX_AGE_MS INGEST_MEMORY_MB LOG_FORMAT RUST_LOG
    DEAD_LETTER_MAX_CONSECUTIVE DEAD_LETTER_RETENTION_DAYS SHUTDOWN_TIMEOUT_MS OTEL_EXPORTER_OTLP_ENDPOINT
    OTEL_EXPORTER_OTLP_HEADERS OTEL_SERVICE_NAME OTEL_RESOURCE_ATTRIBUTES OTEL_TRACES_SAMPLER OTEL_TRACES_SAMPLER_ARG
""".split()


def main(model_file):
    model = json.loads(Path(model_file).read_text())
    services = model["services"]
    faults = [
        *faults_of_references(model),
        *faults_of_ports(services),
        *faults_of_names(services),
        *faults_of_services(services),
        *faults_of_defaults(),
        *faults_of_variables(),
        *faults_of_dockerfile(),
    ]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


def faults_of_references(model):
    """Checks what `docker compose` checks at start, because compose-go's own command does not check it."""
    services = model["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            if other not in services:
                yield f"{name}: depends on {other}, which is not a service"
            elif how["condition"] == "service_healthy" and "healthcheck" not in services[other] and "build" not in services[other]:
                yield f"{name}: waits until {other} is healthy, but {other} has no health check"
        for kind in ("volumes", "networks"):
            used = service.get(kind) or []
            names = [each["source"] for each in used if each["type"] == "volume"] if kind == "volumes" else used
            for each in names:
                if each not in model.get(kind, {}):
                    yield f"{name}: {each} is not defined under {kind}"


def faults_of_ports(services):
    for name, service in services.items():
        if service.get("network_mode") == "host":
            yield f"{name}: network_mode host publishes every port"
        for port in service.get("ports", []):
            host = port.get("host_ip", "")
            if not host or not ipaddress.ip_address(host).is_loopback:
                yield f"{name}: port {port.get('published')} is published on {host or 'every address'}, not on 127.0.0.1"
    for name, published in PORTS.items():
        if published not in [port.get("published") for port in services.get(name, {}).get("ports", [])]:
            yield f"{name}: port {published} is not published"


def faults_of_names(services):
    for name, container in CONTAINER_NAMES.items():
        if services.get(name, {}).get("container_name") != container:
            yield f"{name}: container_name is not {container}"
    for name, service in services.items():
        image = service.get("image", "")
        if "build" not in service and not re.search(r":[^/]*\d", image):
            yield f"{name}: image {image} is not pinned to a version"


def faults_of_services(services):
    for name, service in services.items():
        if "mem_limit" not in service:
            yield f"{name}: has no mem_limit"
        if service.get("privileged"):
            yield f"{name}: is privileged"
    for name in PROGRAMS:
        service = services.get(name)
        if service is None:
            yield f"{name}: is missing"
            continue
        if str(service.get("user", "10001")).split(":")[0] in ("0", "root"):
            yield f"{name}: runs as root"
        if not service.get("read_only"):
            yield f"{name}: its file system is writable (read_only)"
        if service.get("cap_drop") != ["ALL"] or service.get("cap_add"):
            yield f"{name}: keeps capabilities (cap_drop, cap_add)"
        if "no-new-privileges:true" not in service.get("security_opt", []):
            yield f"{name}: may gain privileges (security_opt)"
        shutdown_ms = int(service["environment"]["SHUTDOWN_TIMEOUT_MS"])
        if seconds(service.get("stop_grace_period", "10s")) * 1000 <= shutdown_ms:
            yield f"{name}: stop_grace_period is not above SHUTDOWN_TIMEOUT_MS ({shutdown_ms})"


def seconds(duration):
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


def faults_of_defaults():
    """Checks that `cp .env.example .env` changes nothing."""
    example = dict(re.findall(r"^([A-Z][A-Z0-9_]*)=(.*)$", Path(".env.example").read_text(), re.MULTILINE))
    for variable, default in re.findall(r"\$\{([A-Z0-9_]+):-([^}]*)\}", Path("docker-compose.yaml").read_text()):
        if example.get(variable, default) != default:
            yield f"{variable}: the default is {default!r} in docker-compose.yaml, {example[variable]!r} in .env.example"


def faults_of_variables():
    """Checks both ways: every listed variable is read, and every variable of a program is listed."""
    example = Path(".env.example").read_text()
    listed = set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=", example, re.MULTILINE))
    for line in example.splitlines():
        if not re.fullmatch(r"(#.*)?|[A-Z][A-Z0-9_]*=[^\s'\"$#]*", line):
            yield f".env.example: this line is neither a comment nor a setting without quotes: {line}"
    composed = set(re.findall(r"\$\{([A-Z0-9_]+)", Path("docker-compose.yaml").read_text()))
    sources = [file.read_text() for name in (*PROGRAMS, "shared") for file in Path(name, "src").rglob("*.rs")]
    known = {variable for source in sources for variable in variables_of(source)}
    for variable in sorted(listed - composed - known):
        yield f".env.example: neither docker-compose.yaml nor a program reads {variable}"
    for variable in sorted((composed | known | set(DOCUMENTED)) - listed):
        yield f".env.example: {variable} is missing"


def variables_of(source):
    """The variables that clap reads. Without a name of its own, a variable is named as its field, in upper case."""
    yield from re.findall(r'\benv = "([A-Z0-9_]+)"', source)
    for attribute, field in re.findall(r"#\[arg\((.*?)\)\]\s+(?:pub(?:\(\w+\))? )?(\w+):", source, re.DOTALL):
        if re.search(r"\benv\b(?! =)", attribute):
            yield field.upper()


def faults_of_dockerfile():
    """Checks that each program has a stage, that the stage does not run as root, and that it names the present version."""
    version = re.search(r'^version = "(.*)"', Path("Cargo.toml").read_text(), re.MULTILINE).group(1)
    users, parents, versions, stage = {}, {}, {}, None
    for line in Path("Dockerfile").read_text().splitlines():
        if match := re.match(r"FROM\s+(\S+)\s+AS\s+(\S+)", line):
            parent, stage = match.groups()
            parents[stage] = parent
            users[stage] = users.get(parent)
        elif match := re.match(r"USER\s+(\S+)", line):
            users[stage] = match.group(1)
        elif match := re.match(r"ARG\s+VERSION=(\S+)", line):
            versions[stage] = match.group(1)
    for name in PROGRAMS:
        if name not in parents:
            yield f"Dockerfile: there is no stage {name}"
        elif not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[name] or ""):
            yield f"Dockerfile: {name} runs as {users[name] or 'root'}, not as a numeric user other than 0"
        elif versions.get(name) != version:
            yield f"Dockerfile: {name} has ARG VERSION={versions.get(name)}, the workspace has {version}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
