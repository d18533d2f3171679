//! Lists: a page far from the beginning must cost as much as the first page.

use anyhow::Context as _;

use super::comparison::Comparison;
use super::http::{get, load};

/// How many pages of 1,000 orders are walked to get far from the beginning, or all pages if there are fewer.
const WALKED_PAGES: usize = 100;

/// Measures the first page of 50 orders and one far from the beginning, in turn.
pub(super) fn measure(port: u16, rounds: usize) -> anyhow::Result<()> {
    let window = format!(
        "from=2000-01-01T00:00:00Z&to={}",
        chrono::Utc::now().format("%FT%TZ")
    );
    for (title, filter) in [
        ("all orders", ""),
        ("orders of a customer", "customer_id=customer-1"),
        ("orders of a time", &window),
    ] {
        let (walked, cursor) = walk(port, filter)?;
        let first = format!("/api/v1/orders?{filter}");
        let deep = format!("/api/v1/orders?{filter}&cursor={cursor}");
        println!("list of {title}, one connection: first page, and the one behind {walked} orders");
        let table = Comparison::run(
            rounds,
            [
                ("first", &|| load(port, &first, 1)),
                ("deep", &|| load(port, &deep, 1)),
            ],
        )?;
        println!(
            "median time of the deep page: {:.2} of the first\n",
            table.median(|[first, deep]| deep.p50_ms / first.p50_ms)
        );
    }
    Ok(())
}

/// Walks large pages. Returns the number of orders and the cursor of the last page that has a next one.
fn walk(port: u16, filter: &str) -> anyhow::Result<(usize, String)> {
    let mut last = None;
    for page in 1..=WALKED_PAGES {
        let cursor = last
            .as_ref()
            .map_or_else(String::new, |(_, cursor)| format!("&cursor={cursor}"));
        let page_of_orders = get(port, &format!("/api/v1/orders?limit=1000&{filter}{cursor}"))?;
        let body: serde_json::Value = serde_json::from_slice(page_of_orders.as_bytes())?;
        match body["next_cursor"].as_str() {
            Some(cursor) => last = Some((page * 1000, cursor.to_owned())),
            None => break,
        }
    }
    last.with_context(|| format!("the list with the filter {filter:?} has only one page"))
}
