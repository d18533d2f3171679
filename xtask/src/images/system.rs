//! The containers, as docker-compose.yaml says. Docker Compose itself starts them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use servers::interrupt::wait_for;
use servers::process::Launch;
use servers::{ports, progress, project};

use super::engine::Engine;

/// What is not started: it is made for people, and its image has no stand-in.
const LEFT_OUT: [&str; 2] = ["kafka-ui", "grafana"];
/// The ports in the containers that are published.
const API_PORT: u16 = 8081;
const PROMETHEUS_PORT: u16 = 9090;
/// The project's name, which docker-compose.yaml has, too.
const PROJECT: &str = "orders";
/// Containers wait for each other's health checks, some of which look every ten seconds.
const START_TIMEOUT: Duration = Duration::from_secs(240);
/// Settings in place of the defaults.
const SETTINGS: [(&str, &str); 2] = [
    ("LOG_FORMAT", "json"),
    // So few that what is under way is interrupted in its middle.
    ("BATCH_MAX_RECORDS", "5"),
];

/// The containers of docker-compose.yaml.
#[derive(Debug)]
pub(super) struct System<'a> {
    engine: &'a Engine,
    /// What Compose reads.
    file: PathBuf,
    model: Value,
    api_port: u16,
    prometheus_port: u16,
}

impl<'a> System<'a> {
    /// Prepares them. Nothing runs yet.
    ///
    /// compose-go, the parser of Docker Compose, resolves docker-compose.yaml. So any version of Compose understands it, also
    /// Debian's, which is older than the format.
    pub(super) fn new(engine: &'a Engine) -> Result<Self> {
        progress::step("resolving docker-compose.yaml by compose-go (which is built once)");
        let parser = run_in_root("bash", &["deploy/check.sh", "compose-go"])?;
        let arguments = [
            "--format",
            "json",
            "--no-path-resolution",
            "docker-compose.yaml",
        ];
        let text = run_in_root(parser.trim(), &arguments)?;
        let mut model: Value =
            serde_json::from_str(&text).context("Compose's model is not understood")?;
        let (api_port, prometheus_port) = (ports::free_port()?, ports::free_port()?);
        let published = [
            ("api", API_PORT, api_port),
            ("prometheus", PROMETHEUS_PORT, prometheus_port),
        ];
        adapt(&mut model, &published)?;
        let file = engine.folder().join("compose.json");
        let text = serde_json::to_string_pretty(&model).context("cannot write Compose's model")?;
        // Compose would take each dollar for the beginning of a variable.
        let text = text.replace('$', "$$");
        fs::write(&file, text).context("cannot write Compose's model")?;
        Ok(Self {
            engine,
            file,
            model,
            api_port,
            prometheus_port,
        })
    }

    /// Returns docker-compose.yaml as Compose has resolved it.
    pub(super) fn model(&self) -> &Value {
        &self.model
    }

    /// Returns the URL of a path of the api.
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.api_port)
    }

    /// Returns the URL of a path of Prometheus.
    pub(super) fn prometheus_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.prometheus_port)
    }

    /// Starts all containers, and waits until all of them are healthy.
    pub(super) fn up(&self) -> Result<()> {
        self.compose()
            .args(["up", "--no-build", "--detach"])
            .log_to(self.engine.logs().join("compose.log"))
            .run()?;
        for service in services(&self.model)?.keys() {
            // What has ended has no health, even if its image has a health check.
            let format = "{{if .State.Running}}{{.State.Health.Status}}{{else}}{{.State.Status}} {{.State.ExitCode}}{{end}}";
            let problem = format!("{service} is neither healthy nor finished");
            wait_for(&problem, START_TIMEOUT, || {
                let state = self.inspect(service, format)?;
                Ok(["healthy", "exited 0"]
                    .contains(&state.as_str())
                    .then_some(()))
            })?;
        }
        progress::step("Compose has started the containers, and all of them are healthy");
        progress::say(&format!(
            "*** NOT RUN: {}, whose images have no stand-ins",
            LEFT_OUT.join(" and ")
        ));
        Ok(())
    }

    /// Writes the containers' logs to files, and removes the containers and their data.
    pub(super) fn down(&self) -> Result<()> {
        for service in services(&self.model)?.keys() {
            // What could not be started has no container.
            let Ok(text) = self.logs(service) else {
                continue;
            };
            let log = self.engine.logs().join(format!("{service}.log"));
            fs::write(&log, text).with_context(|| format!("cannot write {}", log.display()))?;
        }
        self.compose()
            .args(["down", "--volumes", "--timeout", "20"])
            .log_to(self.engine.logs().join("compose.log"))
            .run()
    }

    /// Prepares a run of Docker Compose.
    fn compose(&self) -> Launch {
        Launch::new("docker-compose", "docker-compose")
            .env("DOCKER_HOST", self.engine.address())
            .args(["--project-name", PROJECT, "--project-directory"])
            // Paths of volumes are relative to it.
            .arg(project::root())
            .arg("--file")
            .arg(&self.file)
    }

    /// Returns what a service has logged, in all its runs.
    pub(super) fn logs(&self, service: &str) -> Result<String> {
        let container = self.container(service)?;
        // docker keeps both streams apart.
        let both = "docker=$1; \"$docker\" logs \"$2\" 2>&1";
        self.engine.shell(both).arg(&container).output_of("")
    }

    /// Prepares a run of docker.
    pub(super) fn docker(&self) -> Launch {
        self.engine.docker()
    }

    /// Returns the id of a service's container, even if it does not run.
    pub(super) fn container(&self, service: &str) -> Result<String> {
        let project = format!("label=com.docker.compose.project={PROJECT}");
        let label = format!("label=com.docker.compose.service={service}");
        let launch = self.docker().args(["ps", "--all", "--quiet"]);
        let id = launch.args(["--filter", &project, "--filter", &label]);
        let id = id.output_of("")?.trim().to_owned();
        ensure!(!id.is_empty(), "{service} has no container");
        Ok(id)
    }

    /// Returns what docker knows of a service's container, by a template of Go.
    pub(super) fn inspect(&self, service: &str, format: &str) -> Result<String> {
        let container = self.container(service)?;
        let launch = self
            .docker()
            .args(["inspect", "--format", format, &container]);
        Ok(launch.output_of("")?.trim().to_owned())
    }

    /// Waits until docker knows something of a service's container.
    pub(super) fn wait_until(
        &self,
        service: &str,
        format: &str,
        expected: &str,
        patience: Duration,
    ) -> Result<()> {
        let problem = format!("{service}: {format} is not {expected}");
        wait_for(&problem, patience, || {
            Ok((self.inspect(service, format)? == expected).then_some(()))
        })
    }

    /// Returns the process id of a service on this machine.
    pub(super) fn pid(&self, service: &str) -> Result<u32> {
        let pid = self.inspect(service, "{{.State.Pid}}")?;
        pid.parse()
            .with_context(|| format!("{service} has the process id {pid}"))
    }

    /// Runs statements in the database, and returns what they print.
    pub(super) fn psql(&self, statements: &str) -> Result<String> {
        let command = r#"psql -XAtq -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB""#;
        let answer = self
            .docker()
            .args(["exec", "--interactive", "myapp_postgres"])
            .args(["sh", "-c", command])
            .output_of(statements)?;
        Ok(answer.trim().to_owned())
    }

    /// Returns the number that a query selects.
    pub(super) fn number(&self, query: &str) -> Result<u64> {
        let answer = self.psql(query)?;
        answer
            .parse()
            .with_context(|| format!("`{query}` answered {answer:?}"))
    }

    /// Sends messages, one per line, as the README says.
    pub(super) fn produce(&self, lines: &str) -> Result<()> {
        self.docker()
            .args(["exec", "--interactive", "myapp_kafka"])
            .args([
                "kafka-console-producer",
                "--bootstrap-server",
                "localhost:9092",
            ])
            .args(["--topic", "orders"])
            .output_of(lines)?;
        Ok(())
    }
}

/// Leaves out what is not run here, sets our settings, and publishes only some ports: the service, its port, and the machine's.
/// The services of all profiles are started.
fn adapt(model: &mut Value, published: &[(&str, u16, u16)]) -> Result<()> {
    let top = model
        .as_object_mut()
        .context("Compose's model is no object")?;
    // Not known to old versions.
    top.remove("name");
    let services = top
        .get_mut("services")
        .and_then(Value::as_object_mut)
        .context("Compose's model has no services")?;
    services.retain(|name, _| !LEFT_OUT.contains(&name.as_str()));
    for (name, service) in services {
        let service = service.as_object_mut().context("a service is no object")?;
        // Old versions do not take null for absent.
        service.retain(|_, value| !value.is_null());
        // The images are there.
        service.remove("build");
        service.remove("profiles");
        service.remove("ports");
        for (_, inside, outside) in published.iter().filter(|(of, ..)| of == name) {
            let port = format!("127.0.0.1:{outside}:{inside}");
            service.insert("ports".to_owned(), Value::from(vec![port]));
        }
        // Old versions do not know it. Everything that is mounted is there.
        let volumes = service.get_mut("volumes").and_then(Value::as_array_mut);
        for volume in volumes.into_iter().flatten() {
            if let Some(bind) = volume.get_mut("bind").and_then(Value::as_object_mut) {
                bind.remove("create_host_path");
            }
        }
        if let Some(others) = service.get_mut("depends_on").and_then(Value::as_object_mut) {
            for other in others.values_mut().filter_map(Value::as_object_mut) {
                other.retain(|key, _| key == "condition");
            }
        }
        if let Some(environment) = service
            .get_mut("environment")
            .and_then(Value::as_object_mut)
        {
            for (variable, value) in SETTINGS {
                if let Some(setting) = environment.get_mut(variable) {
                    *setting = Value::from(value);
                }
            }
        }
    }
    Ok(())
}

fn services(model: &Value) -> Result<&serde_json::Map<String, Value>> {
    let services = model["services"].as_object();
    services.context("Compose's model has no services")
}

fn run_in_root(program: &str, arguments: &[&str]) -> Result<String> {
    Launch::new(program, program)
        .args(arguments)
        .directory(project::root())
        .output_of("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_keeps_what_confines_its_services() {
        let mut model = serde_json::json!({
            "name": "orders",
            "services": {
                "kafka-ui": {},
                "grafana": {"profiles": ["watching"]},
                "prometheus": {"profiles": ["watching"], "mem_limit": "512m"},
                "api": {
                    "build": {},
                    "command": null,
                    "depends_on": {"postgres": {"condition": "service_healthy", "required": true}},
                    "environment": {"LOG_FORMAT": "text", "DB_PORT": "5432"},
                    "networks": {"default": null},
                    "ports": [{"target": 8081}],
                    "read_only": true,
                    "volumes": [{"type": "bind", "source": "./a", "target": "/a", "bind": {"create_host_path": true}}]
                }
            }
        });
        adapt(&mut model, &[("api", 8081, 17)]).unwrap();
        let expected = serde_json::json!({
            "services": {
                "prometheus": {"mem_limit": "512m"},
                "api": {
                    "depends_on": {"postgres": {"condition": "service_healthy"}},
                    "environment": {"LOG_FORMAT": "json", "DB_PORT": "5432"},
                    "networks": {"default": null},
                    "ports": ["127.0.0.1:17:8081"],
                    "read_only": true,
                    "volumes": [{"type": "bind", "source": "./a", "target": "/a", "bind": {}}]
                }
            }
        });
        assert_eq!(model, expected);
    }
}
