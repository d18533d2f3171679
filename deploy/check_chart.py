"""Checks the Helm chart in deploy/helm without a cluster. check.sh calls it with the path of helm.

Each file in deploy/helm/ci is linted and rendered. What is rendered is compared with the schemas of Kubernetes, strictly, and
with this project's own rules. Each file in deploy/helm/ci/refused must be refused, with the words of its first line. Faults that
are planted into the rendered objects must be found, so that a check that finds nothing cannot pass.
"""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml

CHART = Path("deploy/helm")
# The oldest version that Chart.yaml allows and the newest that the package knows.
KUBERNETES_VERSIONS = ("1.27", kubernetes_validate.latest_version())
# What chart and Secrets give in another form: passwords, tokens and a collector's credentials come as files.
NOT_IN_THE_CHART = {"DB_PASSWORD", "API_TOKEN", "API_TOKEN_FILE", "OTEL_EXPORTER_OTLP_HEADERS"}
# As long as helm allows.
LONG_RELEASE = "r" * 53
# MiB that a container needs besides the memory that the setting names.
MEMORY_SETTINGS = {"INGEST_MEMORY_MB": 288, "CACHE_CAPACITY_MB": 256}


def main(helm):
    faults = [*faults_of_versions(), *faults_of_variables()]
    values_files = sorted(CHART.glob("ci/*-values.yaml"))
    rendered = {}
    for values in values_files:
        for release in ("orders", LONG_RELEASE):
            name = f"{values.name}, release {release[:6]}"
            lint = run(helm, "lint", "--strict", "--quiet", str(CHART), "--values", str(values))
            output = run(helm, "template", release, str(CHART), "--namespace", "shop", "--values", str(values))
            for done in (lint, output):
                if done.returncode != 0:
                    faults.append(f"{name}: {done.args[1]}: {done.stderr.strip() or done.stdout.strip()}")
            if output.returncode == 0:
                objects = [each for each in yaml.safe_load_all(output.stdout) if each]
                rendered[values.name] = objects
                faults.extend(f"{name}: {fault}" for fault in faults_of_objects(objects))
    faults.extend(faults_of_refusals(helm))
    if not faults:
        faults.extend(faults_of_checks(rendered["everything-values.yaml"]))
    for fault in faults:
        print(fault)
    return 1 if faults else 0


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


def faults_of_versions():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.*)"', Path("Cargo.toml").read_text(), re.MULTILINE).group(1)
    if chart["appVersion"] != version:
        yield f"Chart.yaml: appVersion is {chart['appVersion']}, the workspace has {version}"


def faults_of_variables():
    """Checks both ways: the chart sets only variables of .env.example, and each of them can be set."""
    listed = variables_of_example()
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    chosen = set()
    for settings in (schema["settings"], schema["ingestor"]["properties"]["settings"], schema["api"]["properties"]["settings"]):
        chosen |= set(settings["properties"])
    templates = "".join(file.read_text() for file in CHART.glob("templates/*"))
    fixed = set(re.findall(r'"([A-Z]+_[A-Z_]+)" ', templates)) | set(re.findall(r"^([A-Z]+_[A-Z_]+): ", templates, re.MULTILINE))
    for variable in sorted((chosen | fixed) - listed):
        yield f"deploy/helm: {variable} is not in .env.example"
    for variable in sorted(chosen & fixed - {"ALLOWED_HOSTS"}):
        yield f"deploy/helm: {variable} is both a setting of values.schema.json and set by a template"
    for variable in sorted(listed - chosen - fixed - NOT_IN_THE_CHART):
        yield f"deploy/helm: {variable} of .env.example can not be set: add it to the settings in values.schema.json"


def variables_of_example():
    return set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=", Path(".env.example").read_text(), re.MULTILINE))


def faults_of_refusals(helm):
    for values in sorted(CHART.glob("ci/refused/*.yaml")):
        expected = values.read_text().splitlines()[0].removeprefix("# expect: ")
        done = run(helm, "template", "orders", str(CHART), "--values", str(values))
        if done.returncode == 0:
            yield f"{values.name}: is accepted"
        elif expected not in done.stderr:
            yield f"{values.name}: is refused without the words {expected!r}: {done.stderr.strip()}"


def faults_of_objects(objects):
    for each in objects:
        name = f"{each['kind']} {each['metadata']['name']}"
        if len(each["metadata"]["name"]) > 63:
            yield f"{name}: the name has more than 63 characters"
        yield from (f"{name}: {fault}" for fault in faults_of_schema(each))
    yield from faults_of_pods(objects)
    yield from faults_of_selectors(objects)


def faults_of_schema(each):
    # The operator's own kind. faults_of_selectors checks what it refers to.
    if each["kind"] == "ServiceMonitor":
        return
    for version in KUBERNETES_VERSIONS:
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            place = ".".join(str(step) for step in getattr(error, "path", []))
            yield f"Kubernetes {version}: {place}: {error.message}"


def faults_of_pods(objects):
    for each in objects:
        if each["kind"] in ("Deployment", "Job"):
            pod = each["spec"]["template"]["spec"]
            for fault in faults_of_pod(pod):
                yield f"{each['kind']} {each['metadata']['name']}: {fault}"


def faults_of_pod(pod):
    container = pod["containers"][0]
    expected = {
        "automountServiceAccountToken": (pod.get("automountServiceAccountToken"), False),
        "enableServiceLinks": (pod.get("enableServiceLinks"), False),
        "runAsNonRoot": (pod["securityContext"].get("runAsNonRoot"), True),
        "seccompProfile": (pod["securityContext"].get("seccompProfile"), {"type": "RuntimeDefault"}),
        "securityContext": (
            container.get("securityContext"),
            {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "privileged": False,
                "readOnlyRootFilesystem": True,
            },
        ),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            yield f"{name} is {found}, not {wanted}"
    names = [each["name"] for each in container["env"]]
    variables = {each["name"]: each["value"] for each in container["env"]}
    if len(names) != len(variables):
        yield "a variable is set twice"
    for name, value in variables.items():
        if name not in variables_of_example() or name in NOT_IN_THE_CHART:
            yield f"the variable {name} is not one that the chart may set"
        if re.search(r"\de[+]\d", value):
            yield f"{name} is {value}: a number with an exponent"
    yield from faults_of_deadlines(pod, variables)
    yield from faults_of_memory(container, variables)
    yield from faults_of_probes(container)
    yield from faults_of_files(pod, container, variables)


def faults_of_deadlines(pod, variables):
    deadline = int(variables.get("SHUTDOWN_TIMEOUT_MS", 10000)) + int(variables.get("SHUTDOWN_DRAIN_MS", 0))
    if pod["terminationGracePeriodSeconds"] * 1000 <= deadline:
        yield f"terminationGracePeriodSeconds is not above the program's own {deadline} ms"


def faults_of_memory(container, variables):
    limit = mebibytes(container["resources"]["limits"]["memory"])
    for setting, more in MEMORY_SETTINGS.items():
        if int(variables.get(setting, 0)) > 0 and limit < int(variables[setting]) + more:
            yield f"the memory limit is {limit} MiB, which is too little for {setting}={variables[setting]}"


def mebibytes(quantity):
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()
    return int(number) * {"Mi": 1, "Gi": 1024}[unit]


def faults_of_probes(container):
    ports = {port["name"] for port in container.get("ports", [])}
    if not ports:
        return
    paths = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    for probe, path in paths.items():
        if container.get(probe, {}).get("httpGet") != {"path": path, "port": "ops"} or "ops" not in ports:
            yield f"{probe} does not ask {path} on the operators' port"


def faults_of_files(pod, container, variables):
    """Checks that each file that a variable names is one that a volume holds, or one of the image."""
    volumes = {volume["name"]: volume["projected"]["sources"] for volume in pod["volumes"]}
    files = set()
    for mount in container["volumeMounts"]:
        for source in volumes[mount["name"]]:
            for item in next(iter(source.values()))["items"]:
                files.add(f"{mount['mountPath']}/{item['path']}")
    named = {value for value in variables.values() if value.startswith("/")} - {"/etc/ssl/certs/ca-certificates.crt"}
    if named != files:
        yield f"the variables name {sorted(named)}, the volumes hold {sorted(files)}"


def faults_of_selectors(objects):
    by_kind = {}
    for each in objects:
        by_kind.setdefault(each["kind"], []).append(each)
    deployments = by_kind["Deployment"]
    for deployment in deployments:
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        if not deployment["spec"]["selector"]["matchLabels"].items() <= labels.items():
            yield f"Deployment {deployment['metadata']['name']}: its selector does not match its pods"
    for kind, selector_of in (
        ("Service", lambda each: each["spec"]["selector"]),
        ("PodDisruptionBudget", lambda each: each["spec"]["selector"]["matchLabels"]),
        ("NetworkPolicy", lambda each: each["spec"]["podSelector"]["matchLabels"]),
    ):
        for each in by_kind.get(kind, []):
            name = f"{kind} {each['metadata']['name']}"
            chosen = [
                deployment
                for deployment in deployments
                if selector_of(each).items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
            ]
            if len(chosen) != 1:
                yield f"{name}: selects {len(chosen)} Deployments"
                continue
            ports = {port["name"] for port in chosen[0]["spec"]["template"]["spec"]["containers"][0]["ports"]}
            used = {port["targetPort"] for port in each["spec"].get("ports", [])}
            used |= {port["port"] for rule in each["spec"].get("ingress", []) for port in rule.get("ports", [])}
            if not used <= ports:
                yield f"{name}: {sorted(used - ports)} are no ports of the pods"
    for monitor in by_kind.get("ServiceMonitor", []):
        selector = monitor["spec"]["selector"]["matchLabels"].items()
        chosen = [each for each in by_kind["Service"] if selector <= each["metadata"]["labels"].items()]
        ports = {port["name"] for each in chosen for port in each["spec"]["ports"]}
        if len(chosen) != 1 or {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} != ports:
            yield f"ServiceMonitor {monitor['metadata']['name']}: selects {len(chosen)} Services, whose ports are {sorted(ports)}"
        elif not chosen[0]["metadata"]["labels"].get(monitor["spec"]["jobLabel"], "").startswith("orders-"):
            yield f"ServiceMonitor {monitor['metadata']['name']}: the rules do not know its job"


def container_of(objects, component):
    return deployment_of(objects, component)["spec"]["template"]["spec"]["containers"][0]


def deployment_of(objects, component):
    [found] = [each for each in objects if each["kind"] == "Deployment" and each["metadata"]["name"].endswith(f"-{component}")]
    return found


def of_kind(objects, kind):
    return next(each for each in objects if each["kind"] == kind)


def remove_variable(objects, component, name):
    container = container_of(objects, component)
    container["env"] = [each for each in container["env"] if each["name"] != name]


# Each of these faults must be found.
PLANTED = {
    "a misspelt field of a pod": lambda objects: container_of(objects, "api").update(readinesProbe={}),
    "a misspelt field of a Deployment": lambda objects: deployment_of(objects, "api")["spec"].update(replica=2),
    "a text where a number belongs": lambda objects: deployment_of(objects, "ingestor")["spec"].update(replicas="two"),
    "a kind in a group that does not have it": lambda objects: of_kind(objects, "Job").update(apiVersion="apps/v1"),
    "a container that may write": lambda objects: container_of(objects, "api")["securityContext"].update(
        readOnlyRootFilesystem=False
    ),
    "a probe on the clients' port": lambda objects: container_of(objects, "api")["livenessProbe"]["httpGet"].update(port="http"),
    "a limit of memory below the setting": lambda objects: container_of(objects, "ingestor")["resources"]["limits"].update(
        memory="256Mi"
    ),
    "a grace period that is too short": lambda objects: deployment_of(objects, "api")["spec"]["template"]["spec"].update(
        terminationGracePeriodSeconds=25
    ),
    "a variable that no program reads": lambda objects: container_of(objects, "api")["env"].append(
        {"name": "CACHE_SIZE", "value": "1"}
    ),
    "a password in a variable": lambda objects: container_of(objects, "api")["env"].append(
        {"name": "DB_PASSWORD", "value": "secret"}
    ),
    "a file that no variable names": lambda objects: remove_variable(objects, "ingestor", "KAFKA_CONFIG_FILE"),
    "a collector's credentials in a variable": lambda objects: container_of(objects, "api")["env"].append(
        {"name": "OTEL_EXPORTER_OTLP_HEADERS", "value": "authorization=secret"}
    ),
    "a budget of nothing": lambda objects: of_kind(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].update(
        {"app.kubernetes.io/component": "none"}
    ),
    "a policy for a port that is not there": lambda objects: of_kind(objects, "NetworkPolicy")["spec"]["ingress"][0]["ports"][
        0
    ].update(port="metrics"),
    "a monitor of all Services": lambda objects: of_kind(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"].pop(
        "order-service/job"
    )
    and of_kind(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"].pop("app.kubernetes.io/component"),
}


def faults_of_checks(objects):
    """Plants one fault at a time. A fault that nobody finds is a fault of these checks."""
    for name, plant in PLANTED.items():
        broken = copy.deepcopy(objects)
        plant(broken)
        if not list(faults_of_objects(broken)):
            yield f"planted and not found: {name}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
