//! Lists: a page far from the beginning must cost what the first one costs.

use anyhow::Context as _;

use super::http::{Load, get, load};
use crate::benchmarks::{in_turn, median, print_load_average};

/// Pages of 1,000 orders that are walked to get far from the beginning, or all there are.
const WALKED_PAGES: usize = 100;

/// Measures the first page of 50 orders and one far behind it, in turn.
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
        super::print_heads(&["first", "deep"]);
        let mut ratios = Vec::new();
        for round in 1..=rounds {
            let (first, deep): (Load, Load) =
                in_turn(round, || load(port, &first, 1), || load(port, &deep, 1))?;
            super::print_round(round, &[first, deep]);
            ratios.push(deep.p50_ms / first.p50_ms);
        }
        print_load_average();
        println!(
            "median time of the deep page: {:.2} of the first\n",
            median(&mut ratios)
        );
    }
    Ok(())
}

/// Walks large pages; gives the number of orders and the cursor of the last page that is not the end.
fn walk(port: u16, filter: &str) -> anyhow::Result<(usize, String)> {
    let mut last = None;
    for page in 1..=WALKED_PAGES {
        let cursor = last
            .as_ref()
            .map_or_else(String::new, |(_, cursor)| format!("&cursor={cursor}"));
        let (_, body) = get(port, &format!("/api/v1/orders?limit=1000&{filter}{cursor}"))?;
        let page_body: serde_json::Value = serde_json::from_str(&body)?;
        match page_body["next_cursor"].as_str() {
            Some(cursor) => last = Some((page * 1000, cursor.to_owned())),
            None => break,
        }
    }
    last.with_context(|| format!("the list has one page only: {filter:?}"))
}
