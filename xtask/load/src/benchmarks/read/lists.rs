//! Lists: a page far from the beginning must cost as much as the first page.

use anyhow::Context as _;

use super::comparison::Comparison;
use super::http::{get, load};

/// How many pages are walked to get far from the beginning, or all pages if there are fewer.
const WALKED_PAGES: usize = 100;

/// Measures the first page of 50 orders and one far from the beginning, in turn.
pub(super) fn measure(port: u16, rounds: usize) -> anyhow::Result<()> {
    let window = format!(
        "from=2000-01-01T00:00:00Z&to={}",
        chrono::Utc::now().format("%FT%TZ")
    );
    // One customer has a thousandth of all orders.
    for (title, filter, page_size) in [
        ("all orders", "", 1_000),
        ("orders of a customer", "customer_id=customer-1", 100),
        ("orders of a time", &window, 1_000),
    ] {
        let (walked, cursor) = walk(port, filter, page_size)?;
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

/// Walks pages. Returns the number of orders and the cursor of the last page that has a next one.
fn walk(port: u16, filter: &str, page_size: usize) -> anyhow::Result<(usize, String)> {
    let mut last = None;
    for page in 1..=WALKED_PAGES {
        let cursor = last
            .as_ref()
            .map_or_else(String::new, |(_, cursor)| format!("&cursor={cursor}"));
        let path = format!("/api/v1/orders?limit={page_size}&{filter}{cursor}");
        let page_of_orders = get(port, &path)?;
        let body: serde_json::Value = serde_json::from_slice(page_of_orders.as_bytes())?;
        match body["next_cursor"].as_str() {
            Some(cursor) => last = Some((page * page_size, cursor.to_owned())),
            None => break,
        }
    }
    last.with_context(|| format!("the list with the filter {filter:?} has only one page"))
}
