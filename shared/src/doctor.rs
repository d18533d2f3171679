//! `doctor`: looks at everything that a program needs, and says what is missing, why that matters, and what to do.
//!
//! First the facts are gathered, then each check looks at them. A check is one function in one table, and looks at one thing. So a
//! single cause leads to a single finding. `doctor` changes nothing.

pub mod machine;
pub mod postgres;

use anyhow::{Context, bail};
use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The service works, and could work better.
    Advice,
    /// The service works now, and will not in a foreseeable case.
    Warning,
    /// The service does not work, or breaks a promise.
    Error,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, with names and values.
    pub what: String,
    /// Why it matters.
    pub why: &'static str,
    /// What to do.
    pub remedy: String,
}

impl Fault {
    /// Something that must be mended.
    pub fn error(what: impl Into<String>, why: &'static str, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Error, what, why, remedy)
    }

    /// Something that will go wrong in a foreseeable case.
    pub fn warning(what: impl Into<String>, why: &'static str, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Warning, what, why, remedy)
    }

    /// Something that could be better.
    pub fn advice(what: impl Into<String>, why: &'static str, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Advice, what, why, remedy)
    }

    fn new(
        severity: Severity,
        what: impl Into<String>,
        why: &'static str,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            what: what.into(),
            why,
            remedy: remedy.into(),
        }
    }
}

/// A check: its name, and the function that looks at the facts. The name is stable, so that programs can rely on it.
pub type Check<F> = (&'static str, fn(&F) -> Option<Fault>);

/// What became of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "result")]
enum Outcome {
    Ok,
    Found(Fault),
    /// The facts are not known. Another finding tells why.
    Skipped {
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Checked {
    check: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
}

/// What all checks have found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    program: &'static str,
    version: &'static str,
    checks: Vec<Checked>,
}

impl Report {
    /// Nothing is checked yet.
    pub fn new(program: &'static str, version: &'static str) -> Self {
        Self {
            program,
            version,
            checks: Vec::new(),
        }
    }

    /// Runs checks on their facts.
    pub fn run<F>(&mut self, checks: &[Check<F>], facts: &F) {
        for (check, look) in checks {
            self.note(check, look(facts));
        }
    }

    /// Notes that the facts of checks are not known.
    pub fn skip<F>(&mut self, checks: &[Check<F>], reason: &str) {
        for (check, _) in checks {
            let reason = reason.to_owned();
            self.push(check, Outcome::Skipped { reason });
        }
    }

    /// Notes what a check has found.
    pub fn note(&mut self, check: &'static str, found: Option<Fault>) {
        self.push(check, found.map_or(Outcome::Ok, Outcome::Found));
    }

    fn push(&mut self, check: &'static str, outcome: Outcome) {
        self.checks.push(Checked { check, outcome });
    }

    fn found(&self) -> impl Iterator<Item = (&'static str, &Fault)> {
        self.checks
            .iter()
            .filter_map(|checked| match &checked.outcome {
                Outcome::Found(fault) => Some((checked.check, fault)),
                Outcome::Ok | Outcome::Skipped { .. } => None,
            })
    }

    fn count(&self, severity: Severity) -> usize {
        (self.found())
            .filter(|(_, fault)| fault.severity == severity)
            .count()
    }

    /// Prints the report.
    ///
    /// # Errors
    /// Returns an error if something must be mended.
    pub fn print(&self, as_json: bool) -> anyhow::Result<()> {
        if as_json {
            let document = serde_json::to_string_pretty(self).context("cannot print JSON")?;
            println!("{document}");
        } else {
            print!("{}", self.to_lines());
        }
        match self.count(Severity::Error) {
            0 => Ok(()),
            1 => bail!("doctor: 1 thing must be mended"),
            errors => bail!("doctor: {errors} things must be mended"),
        }
    }

    /// One line for each finding, the worst first, and a line that sums up.
    fn to_lines(&self) -> String {
        let mut found: Vec<(&str, &Fault)> = self.found().collect();
        found.sort_by_key(|(_, fault)| std::cmp::Reverse(fault.severity));
        let mut lines = String::new();
        for (check, fault) in found {
            let severity = name_of(fault.severity);
            let Fault {
                what, why, remedy, ..
            } = fault;
            lines.push_str(&format!("{severity:<7} {check}: {what}: {why}; {remedy}\n"));
        }
        for (reason, checks) in self.skipped() {
            lines.push_str(&format!("skipped {}: {reason}\n", checks.join(", ")));
        }
        lines.push_str(&format!(
            "{} checks: {} errors, {} warnings, {} pieces of advice\n",
            self.checks.len(),
            self.count(Severity::Error),
            self.count(Severity::Warning),
            self.count(Severity::Advice),
        ));
        lines
    }

    /// The checks that were skipped, by their reason.
    fn skipped(&self) -> Vec<(&str, Vec<&'static str>)> {
        let mut by_reason: Vec<(&str, Vec<&'static str>)> = Vec::new();
        for checked in &self.checks {
            if let Outcome::Skipped { reason } = &checked.outcome {
                match by_reason.iter_mut().find(|(known, _)| known == reason) {
                    Some((_, checks)) => checks.push(checked.check),
                    None => by_reason.push((reason, vec![checked.check])),
                }
            }
        }
        by_reason
    }
}

fn name_of(severity: Severity) -> &'static str {
    match severity {
        Severity::Advice => "advice",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new("program", "1.2.3");
        let checks: [Check<u8>; 3] = [
            ("a.advice", |_| Some(Fault::advice("what", "why", "remedy"))),
            ("a.error", |fact| {
                (*fact > 1).then(|| Fault::error("too many", "there is room for 1", "use 1"))
            }),
            ("a.good", |_| None),
        ];
        report.run(&checks, &2);
        report.skip(&checks[1..], "nobody knows");
        report
    }

    #[test]
    fn each_finding_is_a_line_and_the_worst_comes_first() {
        assert_eq!(
            report().to_lines(),
            "error   a.error: too many: there is room for 1; use 1\n\
             advice  a.advice: what: why; remedy\n\
             skipped a.error, a.good: nobody knows\n\
             5 checks: 1 errors, 0 warnings, 1 pieces of advice\n"
        );
    }

    #[test]
    fn the_document_has_every_check() {
        let document = serde_json::to_value(report()).unwrap();
        assert_eq!(document["program"], "program");
        assert_eq!(
            document["checks"],
            serde_json::json!([
                {"check": "a.advice", "result": "found", "severity": "advice", "what": "what", "why": "why", "remedy": "remedy"},
                {"check": "a.error", "result": "found", "severity": "error", "what": "too many", "why": "there is room for 1", "remedy": "use 1"},
                {"check": "a.good", "result": "ok"},
                {"check": "a.error", "result": "skipped", "reason": "nobody knows"},
                {"check": "a.good", "result": "skipped", "reason": "nobody knows"},
            ])
        );
    }

    #[test]
    fn only_what_must_be_mended_is_a_failure() {
        assert!(report().print(true).is_err());
        let mut mild = Report::new("program", "1.2.3");
        mild.note("a.warning", Some(Fault::warning("what", "why", "remedy")));
        assert!(mild.print(false).is_ok());
    }
}
