//! Searches: each must cost about as much as a page of the list.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde_json::json;
use shared::testing::TestDatabase;

use super::comparison::Comparison;
use super::http::{load, load_by_script};
use crate::benchmarks::AS_FOREIGN_WRITER;

/// One of so many orders gets the phone that many orders have.
const SHARE_OF_THE_COMMON_PHONE: usize = 50;
const COMMON_PHONE: &str = "+70000000000";
/// How many different values are searched for in turn.
const VALUES: usize = 1_000;

/// Measures searches by different values, in turn with the first page of the list, over one connection.
pub(super) fn measure(
    database: &TestDatabase,
    port: u16,
    folder: &Path,
    rounds: usize,
) -> anyhow::Result<()> {
    database.execute(&format!(
        "{AS_FOREIGN_WRITER}; UPDATE orders SET delivery_phone = '{COMMON_PHONE}' WHERE hashtext(order_uid) % {SHARE_OF_THE_COMMON_PHONE} = 0"
    ));
    database.execute("VACUUM (ANALYZE) orders");
    let sample = |expression: &str| {
        database.texts(&format!(
            "SELECT {expression} AS value FROM (SELECT * FROM orders WHERE delivery_phone <> '{COMMON_PHONE}' \
             ORDER BY hashtext(order_uid) LIMIT {VALUES}) sampled"
        ))
    };
    for (title, field, values) in [
        ("phones of one order", "phone", sample("delivery_phone")),
        (
            "a phone of one order in fifty",
            "phone",
            vec![COMMON_PHONE.to_owned()],
        ),
        ("e-mails", "email", sample("delivery_email")),
        (
            "e-mails that no order has",
            "email",
            sample("'no-' || delivery_email"),
        ),
        (
            "prefixes of ids",
            "order_uid_prefix",
            sample("left(order_uid, 5)"),
        ),
        (
            "prefixes of track numbers",
            "track_number_prefix",
            sample("left(track_number, 9)"),
        ),
    ] {
        println!("search for {title}, one connection:");
        let script = script(folder, field, &values)?;
        let table = Comparison::run(
            rounds,
            [
                ("list", &|| load(port, "/api/v1/orders", 1)),
                ("search", &|| load_by_script(port, &script, 1)),
            ],
        )?;
        println!(
            "median time of the search: {:.2} of the list, p99 {:.2} ms\n",
            table.median(|[list, search]| search.p50_ms / list.p50_ms),
            table.median(|[_, search]| search.p99_ms)
        );
    }
    Ok(())
}

/// Writes a script for wrk that searches for the values one after the other. Returns its path.
fn script(folder: &Path, field: &str, values: &[String]) -> anyhow::Result<String> {
    // A text of JSON that has no control characters is also a text of Lua.
    let bodies: Vec<String> = values
        .iter()
        .map(|value| json!(json!({ field: value }).to_string()).to_string())
        .collect();
    let text = format!(
        "local bodies = {{{}}}\nlocal turn = 0\nlocal headers = {{[\"Content-Type\"] = \"application/json\"}}\n\
         request = function()\n  turn = turn % #bodies + 1\n  \
         return wrk.format(\"POST\", \"/api/v1/orders/search\", headers, bodies[turn])\nend\n",
        bodies.join(",\n")
    );
    let path = folder.join(format!("search-{field}-{}.lua", values.len()));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path.to_string_lossy().into_owned())
}
