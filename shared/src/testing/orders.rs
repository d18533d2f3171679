//! Makes orders to send. They vary like those of a shop and are the same for the same seed.

use chrono::{DateTime, TimeDelta, Utc};
use compact_str::{CompactString, ToCompactString, format_compact};

use crate::order::{Delivery, Item, Order, OrderUid, Payment};

/// The sample order of this field.
pub fn model_json() -> &'static str {
    include_str!("../../data/model.json")
}

const NAMES: [&str; 8] = [
    "Test Testov",
    "Анна Каренина",
    "María-José O'Neill",
    "Jürgen Groß",
    "李小龍",
    "Dana Cohen",
    "Zoë Ångström",
    "Ahmed bin Said",
];
const CITIES: [(&str, &str, &str); 6] = [
    ("Kiryat Mozkin", "Kraiot", "Ploshad Mira"),
    ("Москва", "Москва", "ул. Льва Толстого"),
    ("Berlin", "Berlin", "Straße des 17. Juni"),
    ("Kraków", "Małopolska", "ul. Floriańska"),
    ("Austin", "Texas", "Congress Avenue"),
    ("東京", "東京都", "千代田区丸の内"),
];
const BRANDS: [(&str, &str); 6] = [
    ("Mascaras", "Vivienne Sabo"),
    ("Running shoes", "Kailas"),
    ("Чайник", "Полярис"),
    ("Backpack 20\"", "Fjällräven"),
    ("Phone case", "Spigen"),
    ("Tea, 100 g", "Ahmad & Sons"),
];
const CURRENCIES: [&str; 5] = ["USD", "RUB", "EUR", "ILS", "JPY"];
const PROVIDERS: [&str; 3] = ["wbpay", "sbp", "stripe"];
const BANKS: [&str; 4] = ["alpha", "sber", "tinkoff", "leumi"];
const CARRIERS: [&str; 4] = ["meest", "cdek", "dhl", "post"];
const LOCALES: [&str; 4] = ["en", "ru", "de", "he"];

/// A kind of message that is not an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidKind {
    /// Text that is not JSON.
    NotJson,
    /// An order without a customer.
    MissingField,
    /// An order with a negative price.
    WrongNumber,
    /// An order with NUL in a name, which PostgreSQL cannot store.
    NulCharacter,
    /// An order in an array.
    Array,
}

impl InvalidKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::NotJson,
        Self::MissingField,
        Self::WrongNumber,
        Self::NulCharacter,
        Self::Array,
    ];

    /// The message, and the `dead_letters.reason` that it must get.
    pub fn of(self, order: &Order) -> (Vec<u8>, &'static str) {
        let mut document = serde_json::to_value(order).unwrap();
        match self {
            Self::NotJson => return (b"{\"order_uid\": \"half a mess".to_vec(), "not_json"),
            Self::MissingField => {
                document.as_object_mut().unwrap().remove("customer_id");
            }
            Self::WrongNumber => document["items"][0]["price"] = (-1).into(),
            Self::NulCharacter => document["delivery"]["name"] = "a\0b".into(),
            Self::Array => document = vec![document].into(),
        }
        (document.to_string().into_bytes(), "invalid_order")
    }
}

/// Makes orders.
#[derive(Debug)]
pub struct OrderGenerator {
    random: fastrand::Rng,
    newest: DateTime<Utc>,
    made: u64,
    prefix: String,
}

impl OrderGenerator {
    /// Starts a series. The same seed makes the same orders, except for their dates.
    ///
    /// Each order is a millisecond newer than the one before it. The first one is a millisecond newer than `newest`.
    pub fn new(seed: u64, newest: DateTime<Utc>) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            newest,
            made: 0,
            prefix: format!("{seed:x}"),
        }
    }

    /// An order with a uid that this series has not used yet.
    pub fn next_order(&mut self) -> Order {
        self.made += 1;
        let uid = format!(
            "{}-{:08}-{:08x}",
            self.prefix,
            self.made,
            self.random.u32(..)
        );
        self.order_with_uid(&uid)
    }

    /// An order with a given uid and everything else new, as a later message of that order would bring it.
    pub fn order_with_uid(&mut self, uid: &str) -> Order {
        self.newest += TimeDelta::milliseconds(1);
        let random = &mut self.random;
        let (city, region, street) = pick(random, &CITIES);
        let track_number = format_compact!("WBIL{:010}", random.u32(..));
        let items: Vec<Item> = (0..random.usize(1..=3))
            .map(|_| item(random, &track_number))
            .collect();
        let goods_total = items.iter().map(|item| item.total_price).sum();
        let delivery_cost = random.i64(0..2_000);
        Order {
            order_uid: uid.parse::<OrderUid>().unwrap(),
            entry: "WBIL".into(),
            delivery: Delivery {
                name: pick(random, &NAMES).into(),
                phone: format_compact!("+{}", random.u64(10_000_000_000..99_999_999_999)),
                zip: format_compact!("{:06}", random.u32(0..1_000_000)),
                city: city.into(),
                address: format_compact!("{street} {}", random.u8(1..200)),
                region: region.into(),
                email: format_compact!("customer{}@shop.example", random.u32(0..100_000)),
            },
            payment: Payment {
                transaction: uid.into(),
                request_id: CompactString::default(),
                currency: pick(random, &CURRENCIES).into(),
                provider: pick(random, &PROVIDERS).into(),
                amount: goods_total + delivery_cost,
                payment_dt: self.newest.timestamp(),
                bank: pick(random, &BANKS).into(),
                delivery_cost,
                goods_total,
                custom_fee: 0,
            },
            items,
            locale: pick(random, &LOCALES).into(),
            internal_signature: CompactString::default(),
            customer_id: format_compact!("customer-{}", random.u32(0..1_000)),
            delivery_service: pick(random, &CARRIERS).into(),
            shardkey: random.u8(0..10).to_compact_string(),
            sm_id: random.i64(0..100),
            date_created: self.newest,
            oof_shard: random.u8(1..3).to_compact_string(),
            track_number,
        }
    }
}

fn item(random: &mut fastrand::Rng, track_number: &str) -> Item {
    let (name, brand) = pick(random, &BRANDS);
    let price = random.i64(100..50_000);
    let sale = random.i32(0..=70);
    Item {
        chrt_id: random.i64(1_000_000..10_000_000),
        track_number: track_number.into(),
        price,
        rid: format_compact!("{:016x}", random.u64(..)),
        name: name.into(),
        sale,
        size: random.u8(0..60).to_compact_string(),
        total_price: price * i64::from(100 - sale) / 100,
        nm_id: random.i64(1_000_000..10_000_000),
        brand: brand.into(),
        status: 202,
    }
}

fn pick<T: Copy>(random: &mut fastrand::Rng, choices: &[T]) -> T {
    choices[random.usize(..choices.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_orders_are_valid_and_the_invalid_ones_are_not() {
        let start = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut generator = OrderGenerator::new(1, start);
        for _ in 0..200 {
            let order = generator.next_order();
            assert_eq!(
                Order::decode(&serde_json::to_vec(&order).unwrap()).unwrap(),
                order
            );
            for kind in InvalidKind::ALL {
                let (message, reason) = kind.of(&order);
                assert_eq!(Order::decode(&message).unwrap_err().reason(), reason);
            }
        }
    }
}
