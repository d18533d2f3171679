"""Checks that rules, their tests, the runbook, the dashboards and the documentation of the metrics fit together.

check.sh calls it in the project's folder. What Prometheus itself can check, promtool checks.
"""

import json
import re
import sys
from pathlib import Path

import yaml

RULES = Path("deploy/prometheus/rules.yml")
TESTS = sorted(Path("deploy/prometheus").glob("rules*_test.yml"))
RUNBOOK = Path("docs/RUNBOOK.md")
OPERATIONS = Path("docs/OPERATIONS.md")
COMPOSE = Path("docker-compose.yaml")
DASHBOARDS = sorted(Path("deploy/grafana").glob("*.json"))

SEVERITIES = ("page", "ticket")
# What every section of the runbook has.
PARTS = ("**Means.**", "**Look.**", "**Do.**", "**Over.**")
# Variables that Grafana itself knows.
BUILT_IN_VARIABLES = {"__rate_interval", "__all"}
# The series of a histogram.
HISTOGRAM_SUFFIX = re.compile(r"_(bucket|sum|count)$")


def main():
    rules = yaml.safe_load(RULES.read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    known = documented_metrics(OPERATIONS.read_text())
    faults = [
        *faults_of_alerts(alerts),
        *faults_of_tests(alerts, [test for file in TESTS for test in yaml.safe_load(file.read_text())["tests"]]),
        *faults_of_runbook(alerts, RUNBOOK.read_text()),
        *faults_of_links(RUNBOOK),
        *faults_of_metrics(known, recorded, expressions(rules)),
        *(fault for file in DASHBOARDS for fault in faults_of_dashboard(file, {alert["alert"] for alert in alerts})),
        *faults_of_compose(COMPOSE.read_text()),
    ]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


def faults_of_alerts(alerts):
    names = [alert["alert"] for alert in alerts]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{RULES}: there are two alerts {name}"
    for alert in alerts:
        name, annotations = alert["alert"], alert.get("annotations", {})
        if alert.get("labels", {}).get("severity") not in SEVERITIES:
            yield f"{RULES}: {name} has none of the severities {', '.join(SEVERITIES)}"
        for annotation in ("summary", "description"):
            if not annotations.get(annotation):
                yield f"{RULES}: {name} has no {annotation}"
        # Of a comparison with equality everybody knows the value.
        if "$value" not in annotations.get("description", "") and "==" not in alert["expr"]:
            yield f"{RULES}: the description of {name} does not tell the value"
        if annotations.get("runbook_url") != f"{RUNBOOK}#{name.lower()}":
            yield f"{RULES}: the runbook_url of {name} is not {RUNBOOK}#{name.lower()}"


def faults_of_tests(alerts, tests):
    """Each alert has a test of its name, in which it is silent, then fires, then is silent again."""
    by_name = {test.get("name"): test for test in tests}
    names = {alert["alert"] for alert in alerts}
    for name in sorted(names - by_name.keys()):
        yield f"{RULES}: {name} has no test"
    for name in sorted(by_name.keys() - names):
        yield f"rules_test.yml: {name} is not an alert"
    for name in sorted(names & by_name.keys()):
        checks = [check for check in by_name[name]["promql_expr_test"] if f'alertname="{name}"' in check["expr"]]
        fires = [bool(check["exp_samples"]) for check in checks]
        if fires != [False, True, False]:
            yield f"rules_test.yml: the test of {name} does not check that it is silent, fires, and is silent again"


def faults_of_runbook(alerts, text):
    sections = dict(re.findall(r"^## (Orders\w+)\n(.*?)(?=^##? |\Z)", text, re.MULTILINE | re.DOTALL))
    names = [alert["alert"] for alert in alerts]
    for name in sorted(set(names) - sections.keys()):
        yield f"{RUNBOOK}: {name} has no section"
    for name, section in sections.items():
        if name not in names:
            yield f"{RUNBOOK}: {name} is not an alert"
        places = [section.find(part) for part in PARTS]
        if -1 in places or places != sorted(places):
            yield f"{RUNBOOK}: the section of {name} does not consist of {' '.join(PARTS)}"


def faults_of_links(file):
    """Checks that every link to a heading leads to one."""
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", file.read_text()):
        page = file.parent / target if target else file
        if not page.is_file():
            yield f"{file}: {target} does not exist"
        elif anchor not in anchors(page.read_text()):
            yield f"{file}: there is no heading #{anchor} in {page}"


def anchors(text):
    """The anchors of headings as GitHub and Grafana make them."""
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        kept = re.sub(r"[^\w\- ]", "", heading.lower())
        yield kept.replace(" ", "-")


def documented_metrics(text):
    """The full names in the first columns of the tables of metrics."""
    known = set()
    for prefix, section in re.findall(r"^## Metrics of .*?\(`(orders_\w+_)\.\.\.`\)\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL):
        for column in re.findall(r"^\|(.*?)\|", section, re.MULTILINE):
            known.update(prefix + name for name in re.findall(r"`(\w+)(?:\{[\w,]*\})?`", column))
    return known


def expressions(rules):
    """All queries, each with where it is from."""
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield f"{RULES}: {rule.get('alert') or rule['record']}", rule["expr"]
    for file in DASHBOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield f"{file}: {panel['title']}", target["expr"]
    for query in re.findall(r"^```promql\n(.*?)^```", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL):
        yield f"{RUNBOOK}: {query.strip()}", query
    for code in re.findall(r"`([^`\n]*orders[_:][^`\n]*)`", RUNBOOK.read_text()):
        yield f"{RUNBOOK}: {code}", code


def faults_of_metrics(known, recorded, queries):
    for place, query in queries:
        for name in sorted(set(re.findall(r"\borders_(?:ingestor|api)_\w+", query))):
            if name not in known and HISTOGRAM_SUFFIX.sub("", name) not in known:
                yield f"{place}: {name} is not in the tables of {OPERATIONS}"
        for name in sorted(set(re.findall(r"\borders:\w+(?::\w+)?(?!\w|\*)", query))):
            if name not in recorded and not name.endswith("_"):
                yield f"{place}: {name} is not recorded"


def faults_of_dashboard(file, alerts):
    dashboard = json.loads(file.read_text())
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set()
    ids, places = set(), set()
    for panel in dashboard["panels"]:
        where = f"{file}: panel {panel['title']}"
        if panel["id"] in ids:
            yield f"{where}: its id is not its own"
        ids.add(panel["id"])
        grid = panel["gridPos"]
        cells = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}
        if cells & places or grid["x"] + grid["w"] > 24:
            yield f"{where}: it covers another panel, or leaves the page"
        places |= cells
        if panel["type"] == "row":
            continue
        if not panel.get("description"):
            yield f"{where}: it has no description"
        if not panel["fieldConfig"]["defaults"].get("unit"):
            yield f"{where}: it has no unit"
        for source in [panel["datasource"], *(target["datasource"] for target in panel["targets"])]:
            if source != {"type": "prometheus", "uid": "${datasource}"}:
                yield f"{where}: its data source is not the variable"
        for link in panel.get("links", []):
            base, _, anchor = link["url"].partition("#")
            if base != "${runbook}" or anchor not in {alert.lower() for alert in alerts}:
                yield f"{where}: its link {link['url']} leads to no section of {RUNBOOK}"
        used |= {name for target in panel["targets"] for name in re.findall(r"\$\{?(\w+)", target["expr"])}
    for name in sorted(used - variables - BUILT_IN_VARIABLES):
        yield f"{file}: a query uses ${name}, which is not a variable"
    if "instance" in variables - used:
        yield f"{file}: no query uses the variable instance"


def faults_of_compose(text):
    for file in DASHBOARDS:
        if f"./{file}:/etc/grafana/dashboards/{file.name}:ro" not in text:
            yield f"{COMPOSE}: Grafana does not get {file}"


if __name__ == "__main__":
    sys.exit(main())
