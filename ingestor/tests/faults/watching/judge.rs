//! A Prometheus that scrapes the programs and judges them by the shipped rules.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use servers::prometheus::PrivatePrometheus;
use shared::testing::{wait_for, wait_until};

/// How long an alert may take to fire or to end. The longest takes about a minute and a half.
const PATIENCE: Duration = Duration::from_secs(180);

/// A running Prometheus, and the alerts that it was seen to fire.
pub struct Judge {
    server: PrivatePrometheus,
    started_at: Instant,
    fired: BTreeSet<String>,
}

impl Judge {
    /// Starts it with some rules. It scrapes an ingestor and an api at these ports.
    pub fn start(rules: &str, ingestor_port: u16, api_port: u16) -> Self {
        let configuration = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}\n\
             rule_files: [rules.yml]\n\
             scrape_configs:\n\
             - {{job_name: orders-ingestor, static_configs: [{{targets: ['127.0.0.1:{ingestor_port}']}}]}}\n\
             - {{job_name: orders-api, static_configs: [{{targets: ['127.0.0.1:{api_port}']}}]}}\n"
        );
        Self {
            server: PrivatePrometheus::start(&configuration, rules).unwrap(),
            started_at: Instant::now(),
            fired: BTreeSet::new(),
        }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.server.port())
    }

    /// The series that a query returns.
    ///
    /// # Errors
    /// Returns what Prometheus says about the query.
    pub fn ask(&self, query: &str) -> Result<Vec<Value>, String> {
        let mut answer = self.get(&format!("/api/v1/query?query={}", encode(query)))?;
        match answer["data"]["result"].take() {
            Value::Array(series) => Ok(series),
            other => Err(format!("{query} is not a vector: {other}")),
        }
    }

    /// The queries of all rules, by the names of the alerts and of the recorded series.
    pub fn rules(&self) -> Vec<(String, String)> {
        let answer = self.get("/api/v1/rules").unwrap();
        let groups = answer["data"]["groups"].as_array().unwrap();
        let rules = groups
            .iter()
            .flat_map(|group| group["rules"].as_array().unwrap());
        rules
            .map(|rule| {
                assert_ne!(rule["health"], "err", "{rule}");
                let text = |member: &str| rule[member].as_str().unwrap().to_owned();
                (text("name"), text("query"))
            })
            .collect()
    }

    /// The names of the alerts that fire.
    pub fn firing(&self) -> BTreeSet<String> {
        let answer = self.get("/api/v1/alerts").unwrap();
        let alerts = answer["data"]["alerts"].as_array().unwrap();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing
            .map(|alert| {
                // A template that fails leaves its error in the text.
                let texts = alert["annotations"].to_string();
                assert!(
                    !texts.contains("<error") && !texts.contains("<no value>"),
                    "{texts}"
                );
                alert["labels"]["alertname"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    /// Waits until these alerts have fired.
    pub fn wait_until_fired(&mut self, names: &[&str]) {
        let mut missing: BTreeSet<&str> = names.iter().copied().collect();
        wait_for(PATIENCE, || {
            let firing = self.firing();
            for name in &firing {
                if missing.remove(name.as_str()) {
                    self.say(&format!("{name} fires"));
                    self.fired.insert(name.clone());
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            Err(format!("{missing:?} fire; {firing:?} do"))
        });
    }

    /// Waits until none of these alerts fires.
    pub fn wait_until_over(&self, names: &[&str]) {
        for name in names {
            wait_until(&format!("{name} is over"), PATIENCE, || {
                !self.firing().contains(*name)
            });
            self.say(&format!("{name} is over"));
        }
    }

    /// Waits until no alert fires.
    pub fn wait_until_quiet(&self) {
        wait_for(PATIENCE, || match self.firing() {
            firing if firing.is_empty() => Ok(()),
            firing => Err(format!("{firing:?} are over")),
        });
        self.say("no alert fires");
    }

    /// The alerts that were waited for and have fired.
    pub fn fired(&self) -> &BTreeSet<String> {
        &self.fired
    }

    /// Prints what has happened, and when.
    pub fn say(&self, what: &str) {
        println!("{:5.1} s  {what}", self.started_at.elapsed().as_secs_f32());
    }

    fn get(&self, path: &str) -> Result<Value, String> {
        let request = minreq::get(self.url() + path).with_timeout(10);
        let response = request.send().map_err(|error| error.to_string())?;
        let text = response.as_str().map_err(|error| error.to_string())?;
        if response.status_code != 200 {
            return Err(text.to_owned());
        }
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
}

fn encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
