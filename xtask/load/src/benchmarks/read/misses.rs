//! Misses. The rival is pgbench with the statement that a miss runs.

use std::path::Path;

use anyhow::Context as _;
use diesel::pg::Pg;
use diesel::prelude::*;
use shared::config::DatabaseSettings;
use shared::db::models::OrderRow;
use shared::db::schema::orders;

use super::api::FIRST_UID;
use super::http::Load;
use crate::benchmarks::services::generator;

/// The default size of the api's pool of connections to the database.
pub(super) const POOL_SIZE: u32 = 8;

/// Runs the statement for random orders, prepared, for 4 seconds. The log goes to `folder`.
pub(super) fn pgbench(
    database: &DatabaseSettings,
    folder: &Path,
    orders: usize,
    connections: u32,
) -> anyhow::Result<Load> {
    let script = folder.join("miss.sql");
    std::fs::write(&script, script_of_a_miss(orders)?)?;
    let text = generator("pgbench")
        .args("-n -M prepared -T 4 -j 2 -l --log-prefix".split(' '))
        .arg(folder.join("pgbench"))
        .args(["-c", &connections.to_string(), "-f"])
        .arg(&script)
        .args(["-h", &database.host, "-p", &database.port.to_string()])
        .args(["-U", &database.user, &database.name])
        .env("PGPASSWORD", database.password.expose())
        .output_of("")
        .context("cannot run pgbench (Debian: apt-get install postgresql)")?;
    let rate = text.lines().find_map(|line| line.strip_prefix("tps = "));
    let rate = rate.and_then(|rate| rate.split(' ').next());
    let rate = rate.with_context(|| format!("pgbench printed no tps: {text}"))?;
    let mut times = logged_microseconds(folder)?;
    times.sort_unstable();
    let percentile = |percent: usize| {
        let time = times.get(times.len() * percent / 100);
        time.copied().unwrap_or_default() as f64 / 1000.0
    };
    Ok(Load {
        per_second: rate.parse()?,
        p50_ms: percentile(50),
        p99_ms: percentile(99),
    })
}

/// Returns a script with diesel's text of the api's query. A variable of pgbench replaces its parameter.
fn script_of_a_miss(orders: usize) -> anyhow::Result<String> {
    let query = orders::table.find("").select(OrderRow::as_select());
    let text = diesel::debug_query::<Pg, _>(&query).to_string();
    let (statement, _) = text
        .split_once(" -- binds")
        .context("the text of diesel's query has no binds")?;
    let statement = statement.replace("$1", ":uid::text");
    let last = FIRST_UID + orders - 1;
    Ok(format!(
        "\\set uid random({FIRST_UID}, {last})\n{statement};\n"
    ))
}

/// Reads the times of the transactions from the logs, and removes the logs. The third field of each line is the time.
fn logged_microseconds(folder: &Path) -> anyhow::Result<Vec<u64>> {
    let mut times = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with("pgbench.") {
            continue;
        }
        for line in std::fs::read_to_string(entry.path())?.lines() {
            let time = line
                .split(' ')
                .nth(2)
                .context("a line of pgbench's log has fewer than three fields")?;
            times.push(time.parse()?);
        }
        std::fs::remove_file(entry.path())?;
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_is_the_statement_of_the_api_with_a_variable() {
        let script = script_of_a_miss(10).unwrap();
        assert!(
            script.starts_with("\\set uid random(1000000000, 1000000009)\nSELECT "),
            "{script}"
        );
        assert!(
            script.contains(r#"WHERE ("orders"."order_uid" = :uid::text)"#),
            "{script}"
        );
        assert!(!script.contains('$'), "{script}");
    }
}
