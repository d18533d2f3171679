//! The two text formats in which metrics are read.
//!
//! `prometheus-client` writes OpenMetrics. Scrapers that do not know it ask for Prometheus's older text format by `Accept`, and
//! refuse some lines of OpenMetrics, such as the type `info`.

use std::collections::HashMap;

use hyper::header::{ACCEPT, HeaderMap};

/// The media type of OpenMetrics.
const OPENMETRICS: &str = "application/openmetrics-text";

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus's text format 0.0.4.
    Text,
}

impl Exposition {
    /// Returns the format that a request asks for.
    ///
    /// A client that knows OpenMetrics names it. One that does not, and names a kind of text, gets the older format; browsers
    /// then show it. A client without any wish gets OpenMetrics.
    pub fn asked_for(headers: &HeaderMap) -> Self {
        let values = headers.get_all(ACCEPT).iter();
        let ranges: Vec<&str> = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|range| range.split(';').next().unwrap_or_default().trim())
            .collect();
        let names = |wanted: fn(&str) -> bool| ranges.iter().any(|range| wanted(range));
        if !names(|range| range.eq_ignore_ascii_case(OPENMETRICS))
            && names(|range| range.to_ascii_lowercase().starts_with("text/"))
        {
            Self::Text
        } else {
            Self::OpenMetrics
        }
    }

    /// Returns the value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Writes metrics in this format that `prometheus-client` has written as OpenMetrics.
    pub fn write(self, openmetrics: String) -> String {
        match self {
            Self::OpenMetrics => openmetrics,
            Self::Text => to_text(&openmetrics),
        }
    }
}

/// The samples are the same in both formats. What differs is what is said of them: the older format describes a counter and an
/// info by the names of their samples, and knows no units, no infos and no end.
fn to_text(openmetrics: &str) -> String {
    let types: HashMap<&str, &str> = openmetrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    let suffix = |name: &str| match types.get(name) {
        Some(&"counter") => "_total",
        Some(&"info") => "_info",
        _ => "",
    };
    let mut text = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        let comment = ["# HELP ", "# TYPE "]
            .into_iter()
            .find_map(|mark| Some((mark, line.strip_prefix(mark)?.split_once(' ')?)));
        match comment {
            Some((mark, (name, rest))) => {
                let rest = match (mark, rest) {
                    ("# TYPE ", "info") => "gauge",
                    ("# TYPE ", "unknown") => "untyped",
                    _ => rest,
                };
                text.extend([mark, name, suffix(name), " ", rest]);
            }
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_for(values: &[&str]) -> Exposition {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT, value.parse().unwrap());
        }
        Exposition::asked_for(&headers)
    }

    #[test]
    fn who_does_not_know_openmetrics_gets_the_older_format() {
        // Prometheus, which prefers OpenMetrics, and the same scraper with another order of its wishes.
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        assert_eq!(asked_for(&[prometheus]), Exposition::OpenMetrics);
        let two = ["text/plain;version=0.0.4", "Application/OpenMetrics-Text"];
        assert_eq!(asked_for(&two), Exposition::OpenMetrics);
        for none in [&[][..], &["*/*"], &[""], &["application/json"]] {
            assert_eq!(asked_for(none), Exposition::OpenMetrics, "{none:?}");
        }
        // An older scraper, one that names the type alone, and a browser.
        for old in [
            "text/plain;version=0.0.4;q=0.3, */*;q=0.1",
            "TEXT/plain",
            "text/html,application/xhtml+xml,*/*;q=0.8",
        ] {
            assert_eq!(asked_for(&[old]), Exposition::Text, "{old}");
        }
    }

    #[test]
    fn samples_stay_and_what_describes_them_is_written_in_the_older_way() {
        let openmetrics = "\
# HELP orders_records Records settled.
# TYPE orders_records counter
orders_records_total 3
# HELP orders_build The program.
# TYPE orders_build info
orders_build_info{version=\"1 # TYPE\"} 1
# HELP orders_age_seconds Age.
# TYPE orders_age_seconds gauge
# UNIT orders_age_seconds seconds
orders_age_seconds 0.5
# HELP orders_old Old.
# TYPE orders_old unknown
orders_old 1
# EOF
";
        let text = "\
# HELP orders_records_total Records settled.
# TYPE orders_records_total counter
orders_records_total 3
# HELP orders_build_info The program.
# TYPE orders_build_info gauge
orders_build_info{version=\"1 # TYPE\"} 1
# HELP orders_age_seconds Age.
# TYPE orders_age_seconds gauge
orders_age_seconds 0.5
# HELP orders_old Old.
# TYPE orders_old untyped
orders_old 1
";
        let written = |format: Exposition| format.write(openmetrics.to_owned());
        assert_eq!(written(Exposition::Text), text);
        assert_eq!(written(Exposition::OpenMetrics), openmetrics);
    }
}
