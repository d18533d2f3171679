//! The list of orders.

use std::collections::HashSet;

use diesel::prelude::*;
use tokio_util::sync::CancellationToken;

use crate::support::copies::store_copies;
use crate::support::download::Download;
use crate::support::{TestApi, generator, store};

fn uids(page: &serde_json::Value) -> Vec<String> {
    let orders = page["orders"].as_array().unwrap().iter();
    orders
        .map(|order| order["order_uid"].as_str().unwrap().to_owned())
        .collect()
}

/// Follows the links of a list to its end. Returns the ids on each page, and the sizes of the answers in bytes.
async fn walk(api: &TestApi, path: &str) -> (Vec<Vec<String>>, Vec<usize>) {
    let (mut pages, mut sizes) = (Vec::new(), Vec::new());
    let mut path = path.to_owned();
    loop {
        let answer = api.get(&path).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        pages.push(uids(&answer.json()));
        sizes.push(answer.body.len());
        let Some(link) = answer.header("link") else {
            assert!(answer.json()["next_cursor"].is_null());
            return (pages, sizes);
        };
        let next = link[1..].strip_suffix(">; rel=\"next\"").unwrap();
        path = next.to_owned();
    }
}

fn newest_first(api: &TestApi) -> Vec<String> {
    let all = "SELECT order_uid AS value FROM orders ORDER BY date_created DESC, order_uid DESC";
    api.database.texts(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_every_order_once_newest_first_though_orders_arrive_meanwhile() {
    let api = TestApi::start().await;
    let mut orders = generator();
    let mut expected = Vec::new();
    for number in 0..23 {
        let mut order = orders.next_order();
        // Several orders have the same time, so the uid decides their order.
        order.date_created = format!("2026-01-01T00:00:00.00000{}Z", number / 5)
            .parse()
            .unwrap();
        api.store(&order).await;
        expected.push((order.date_created, order.order_uid.to_string()));
    }
    let mut path = "/api/v1/orders?limit=4".to_owned();
    let mut seen = Vec::new();
    loop {
        let answer = api.get(&path).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let page = answer.json();
        seen.extend(uids(&page));
        api.store(&orders.next_order()).await;
        let Some(cursor) = page["next_cursor"].as_str() else {
            assert_eq!(answer.header("link"), None);
            break;
        };
        path = format!("/api/v1/orders?limit=4&cursor={cursor}");
        assert_eq!(
            answer.header("link"),
            Some(format!("<{path}>; rel=\"next\"").as_str())
        );
    }
    assert_eq!(seen.iter().collect::<HashSet<_>>().len(), seen.len());
    let expected: HashSet<_> = expected.into_iter().map(|(_, uid)| uid).collect();
    assert_eq!(seen.iter().cloned().collect::<HashSet<_>>(), expected);
    let order_of_database = api
        .database
        .texts("SELECT order_uid AS value FROM orders ORDER BY date_created DESC, order_uid DESC");
    let newest_first: Vec<_> = order_of_database
        .into_iter()
        .filter(|uid| expected.contains(uid))
        .collect();
    assert_eq!(seen, newest_first);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_read_as_whole_as_one_is() {
    let api = TestApi::start().await;
    let mut orders = generator();
    let mut newest_first = Vec::new();
    for copies in [1, 2, 300] {
        for _ in 0..4 {
            let mut order = orders.next_order();
            order.items = std::iter::repeat_n(order.items, copies).flatten().collect();
            store(&api.database, &order);
            newest_first.insert(0, order);
        }
    }
    let expected: Vec<_> = newest_first
        .iter()
        .map(|order| serde_json::to_string(order).unwrap())
        .collect();

    let list = api.get("/api/v1/orders").await;
    // `assert_eq` would print both texts in full.
    let whole = serde_json::to_value(&newest_first).unwrap();
    assert!(list.json()["orders"] == whole, "not in the list");
    let exported = Download::start_wide(api.port, "/api/v1/orders").await;
    assert!(exported.lines().await.unwrap() == expected, "not exported");
    let warmed = api
        .send("POST", "/api/v1/cache/warmup?limit=100", &[], b"")
        .await;
    assert_eq!(warmed.json()["loaded"], expected.len());
    for (order, expected) in newest_first.iter().zip(expected) {
        let answer = api.get(&format!("/order/{}", order.order_uid)).await;
        assert_eq!(answer.header("cache-status"), Some("orders; hit"));
        assert!(answer.body == expected + "\n", "not warmed up");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_combine_and_bind_their_cursors() {
    let api = TestApi::start().await;
    let mut orders = generator();
    for number in 0..6 {
        let mut order = orders.order_with_uid(&format!("uid-{number}"));
        order.customer_id = if number < 4 {
            "a b&c=я".into()
        } else {
            "other".into()
        };
        order.track_number = format!("T{}", number % 2).into();
        order.date_created = format!("2026-01-0{}T00:00:00Z", number + 1)
            .parse()
            .unwrap();
        api.store(&order).await;
    }
    let customer = "customer_id=a+b%26c%3D%D1%8F";
    for (query, expected) in [
        (
            "",
            &["uid-5", "uid-4", "uid-3", "uid-2", "uid-1", "uid-0"][..],
        ),
        (customer, &["uid-3", "uid-2", "uid-1", "uid-0"]),
        ("track_number=T1", &["uid-5", "uid-3", "uid-1"]),
        (&format!("{customer}&track_number=T0"), &["uid-2", "uid-0"]),
        (
            "from=2026-01-02T00:00:00Z&to=2026-01-04T00:00:00Z",
            &["uid-2", "uid-1"],
        ),
        ("from=2026-01-05T03:00:00+03:00", &["uid-5", "uid-4"]),
        ("from=2026-01-05T03:00:00%2B03:00", &["uid-5", "uid-4"]),
        ("customer_id=nobody", &[]),
        ("from=2026-01-04T00:00:00Z&to=2026-01-01T00:00:00Z", &[]),
    ] {
        let answer = api.get(&format!("/api/v1/orders?{query}")).await;
        assert_eq!(uids(&answer.json()), expected, "{query}");
        assert!(answer.json()["next_cursor"].is_null());
    }
    let first = api.get(&format!("/api/v1/orders?limit=3&{customer}")).await;
    let link = first.header("link").unwrap();
    let next = link
        .strip_prefix('<')
        .unwrap()
        .strip_suffix(">; rel=\"next\"")
        .unwrap();
    assert_eq!(uids(&api.get(next).await.json()), ["uid-0"]);
    let cursor = first.json()["next_cursor"].as_str().unwrap().to_owned();
    for query in [
        format!("cursor={cursor}"),
        format!("customer_id=other&cursor={cursor}"),
    ] {
        let answer = api.get(&format!("/api/v1/orders?{query}")).await;
        assert_eq!(answer.problem(), (400, "invalid_cursor".into()));
    }
    let other_limit = api
        .get(&format!(
            "/api/v1/orders?limit=1000&{customer}&cursor={cursor}"
        ))
        .await;
    assert_eq!(
        uids(&other_limit.json()),
        ["uid-0"],
        "the limit may change from page to page"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn walk_meets_every_order_that_stays_exactly_once_while_others_come_and_go() {
    let api = TestApi::start().await;
    let mut orders = generator();
    let mut staying = Vec::new();
    for number in 0..60 {
        let mut order = orders.order_with_uid(&format!("stays-{number}"));
        // Few different times, so that pages end between orders of the same time.
        order.date_created = format!("2026-01-01T00:00:0{}Z", number % 6)
            .parse()
            .unwrap();
        store(&api.database, &order);
        staying.push(order.order_uid.to_string());
    }
    staying.sort_unstable();
    let stop = CancellationToken::new();
    // If this test fails, its writers must end too, because the runtime waits for them.
    let _stopped_at_the_end = stop.clone().drop_guard();
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let (database, stop) = (api.database.clone(), stop.clone());
            let mut orders = generator();
            let mut random = fastrand::Rng::with_seed(writer);
            tokio::task::spawn_blocking(move || {
                let mut written = 0;
                while !stop.is_cancelled() {
                    let uid = format!("goes-{writer}-{}", random.u8(0..30));
                    if random.bool() {
                        let mut order = orders.order_with_uid(&uid);
                        let moment = format!("2026-01-01T00:00:0{}Z", random.u8(0..6));
                        order.date_created = moment.parse().unwrap();
                        store(&database, &order);
                    } else {
                        let delete = diesel::sql_query("DELETE FROM orders WHERE order_uid = $1")
                            .bind::<diesel::sql_types::Text, _>(uid);
                        delete.execute(&mut database.connect()).unwrap();
                    }
                    written += 1;
                }
                written
            })
        })
        .collect();
    for limit in [1, 2, 3, 7, 11, 50] {
        let (pages, _) = walk(&api, &format!("/api/v1/orders?limit={limit}")).await;
        let seen = pages.concat();
        let mut stayed: Vec<_> = seen
            .iter()
            .filter(|uid| uid.starts_with("stays-"))
            .cloned()
            .collect();
        stayed.sort_unstable();
        assert_eq!(stayed, staying, "limit {limit}");
    }
    stop.cancel();
    for writer in writers {
        assert!(writer.await.unwrap() > 10, "no order was added or removed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn page_of_large_orders_ends_at_4_mib_and_the_next_one_continues() {
    let api = TestApi::start().await;
    store_copies(&api.database, 50, 1000);
    let (pages, sizes) = walk(&api, "/api/v1/orders?limit=1000").await;
    assert_eq!(pages.concat(), newest_first(&api));
    let (last, full) = sizes.split_last().unwrap();
    assert!(*last <= 4 << 20 && full.len() >= 2, "{sizes:?}");
    for size in full {
        assert!(((4 << 20) - 300_000..=4 << 20).contains(size), "{sizes:?}");
    }
    let (pages, _) = walk(&api, "/api/v1/orders?limit=3").await;
    assert!(pages.iter().all(|page| page.len() == 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn order_larger_than_a_page_is_a_page_of_its_own() {
    let api = TestApi::start().await;
    store_copies(&api.database, 2, 1);
    // Only somebody who bypasses the programs can store so large an order.
    api.database.execute(
        "UPDATE orders SET items = (SELECT jsonb_agg(items[0] || jsonb_build_object( \
             'name', wide, 'rid', wide, 'size', wide, 'brand', wide, 'track_number', wide)) \
         FROM generate_series(1, 1000), repeat('𝄞', 256) wide)",
    );
    let (pages, sizes) = walk(&api, "/api/v1/orders").await;
    assert_eq!(pages.len(), 3);
    assert_eq!(pages.concat(), newest_first(&api));
    assert!(sizes.iter().all(|size| *size > 4 << 20), "{sizes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_complete_however_many_statements_they_take() {
    let api = TestApi::start().await;
    store_copies(&api.database, 399, 1);
    let all = newest_first(&api);
    for limit in [1, 62, 63, 64, 65, 319, 320, 321, 399, 400, 401, 1000] {
        let (pages, _) = walk(&api, &format!("/api/v1/orders?limit={limit}")).await;
        let expected: Vec<_> = all.chunks(limit).map(<[_]>::to_vec).collect();
        assert_eq!(pages, expected, "limit {limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_link_of_a_list_with_a_bound_beyond_all_years_can_be_followed() {
    let api = TestApi::start().await;
    store_copies(&api.database, 3, 1);
    for bound in [
        "to=9999-12-31T23:59:59.9999999Z",
        "to=9999-12-31T23:59:59-01:00",
        "from=0000-01-01T00:00:00%2B01:00",
        "from=0001-01-01T00:00:00%2B01:00",
    ] {
        let page = api.get(&format!("/api/v1/orders?limit=1&{bound}")).await;
        let link = page.header("link").unwrap();
        let next = link.split(['<', '>']).nth(1).unwrap();
        assert_eq!(api.get(next).await.status, 200, "{bound}: {next}");
    }
}
