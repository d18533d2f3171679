//! What a person sees who has started the profile `watching`: from an alert to the section of the runbook, and until it is over.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use servers::interrupt::wait_for;
use servers::{progress, project};

use super::build::PROGRAMS;
use super::system::System;

/// What fires if no ingestor runs.
const ALERT: &str = "OrdersIngestorsDown";
/// Prometheus looks up the addresses and scrapes every 15 seconds, and evaluates the rules as often.
const SCRAPE_PATIENCE: Duration = Duration::from_secs(90);
/// The alert waits for two minutes.
const ALERT_PATIENCE: Duration = Duration::from_secs(300);

/// Watches both programs by Prometheus, stops the ingestor, and follows the alert.
pub(super) fn check(system: &System<'_>) -> Result<()> {
    for program in PROGRAMS {
        let problem = format!("Prometheus does not reach {program}");
        wait_for(&problem, SCRAPE_PATIENCE, || {
            let answer = ask(system, "/api/v1/targets")?;
            let targets = answer["data"]["activeTargets"].as_array();
            let is_up = targets.into_iter().flatten().any(|target| {
                target["health"] == "up"
                    && target["labels"]["job"] == format!("orders-{program}").as_str()
            });
            Ok(is_up.then_some(()))
        })?;
    }
    progress::step("Prometheus reaches both programs");
    check_rules(system)?;

    let container = system.container("ingestor")?;
    let docker = |command: &str| system.docker().args([command, &container]).output_of("");
    docker("stop")?;
    wait_for(&format!("{ALERT} does not fire"), ALERT_PATIENCE, || {
        Ok((state_of_alert(system)? == "firing").then_some(()))
    })?;
    progress::step(&format!("the ingestor is stopped: {ALERT} fires"));
    check_runbook(system)?;
    docker("start")?;
    wait_for(&format!("{ALERT} does not end"), SCRAPE_PATIENCE, || {
        Ok((state_of_alert(system)? == "inactive").then_some(()))
    })?;
    progress::step(&format!("the ingestor is started: {ALERT} is over"));
    Ok(())
}

/// Checks that Prometheus could evaluate each rule.
fn check_rules(system: &System<'_>) -> Result<()> {
    let count = wait_for("not all rules are evaluated", SCRAPE_PATIENCE, || {
        let rules = rules(system)?;
        for rule in &rules {
            let error = &rule["lastError"];
            ensure!(error.is_null(), "the rule {}: {error}", rule["name"]);
        }
        let are_evaluated = rules.iter().all(|rule| rule["health"] == "ok");
        Ok((are_evaluated && !rules.is_empty()).then_some(rules.len()))
    })?;
    progress::step(&format!("Prometheus evaluates all {count} rules"));
    Ok(())
}

/// Follows the alert to its section of the runbook, in the file that Prometheus serves.
fn check_runbook(system: &System<'_>) -> Result<()> {
    let url = alert(system)?["annotations"]["runbook_url"].clone();
    let (path, section) = url
        .as_str()
        .and_then(|url| url.split_once('#'))
        .with_context(|| format!("{ALERT} leads to {url}"))?;
    ensure!(
        path == "docs/RUNBOOK.md" && project::root().join(path).is_file(),
        "{ALERT} leads to the file {path}"
    );
    let has_section = get(system, "/user/RUNBOOK.txt")?
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .any(|heading| heading.to_lowercase() == section);
    ensure!(
        has_section,
        "{ALERT} leads to the section {section}, which the runbook that Prometheus serves has not"
    );
    progress::step(&format!("the runbook has the section of {ALERT}"));
    Ok(())
}

fn state_of_alert(system: &System<'_>) -> Result<String> {
    let alert = alert(system)?;
    let state = alert["state"].as_str();
    Ok(state.context("an alert has no state")?.to_owned())
}

fn alert(system: &System<'_>) -> Result<Value> {
    let mut rules = rules(system)?.into_iter();
    rules
        .find(|rule| rule["name"] == ALERT)
        .with_context(|| format!("Prometheus has no rule {ALERT}"))
}

/// Returns all rules as Prometheus describes them.
fn rules(system: &System<'_>) -> Result<Vec<Value>> {
    let answer = ask(system, "/api/v1/rules")?;
    let groups = answer["data"]["groups"].as_array();
    let rules = groups
        .context("Prometheus lists no groups of rules")?
        .iter()
        .filter_map(|group| group["rules"].as_array())
        .flatten();
    Ok(rules.cloned().collect())
}

fn ask(system: &System<'_>, path: &str) -> Result<Value> {
    serde_json::from_str(&get(system, path)?)
        .with_context(|| format!("Prometheus answers {path} with what is no JSON"))
}

fn get(system: &System<'_>, path: &str) -> Result<String> {
    let answer = minreq::get(system.prometheus_url(path))
        .with_timeout(10)
        .send()
        .context("Prometheus does not answer")?;
    let status = answer.status_code;
    ensure!(status == 200, "Prometheus answers {path} with {status}");
    let text = answer.as_str();
    Ok(text
        .with_context(|| format!("Prometheus answers {path} with what is no text"))?
        .to_owned())
}
