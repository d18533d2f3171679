//! The rules of an order. It takes the fields that were read and returns an order or all of its faults. It does no I/O.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, SubsecRound, Timelike, Utc};
use compact_str::CompactString;

use super::fault::Fault;
use super::raw::{Field, Integer, Kind, RawDelivery, RawItem, RawOrder, RawPayment, Text};
use super::{Delivery, Item, MAX_ITEMS, Order, OrderRules, OrderUid, Payment};

/// Largest integer that every JSON reader keeps exactly (RFC 8259, section 6).
const MAX_INTEGER: u64 = (1 << 53) - 1;
const MAX_TEXT_CHARS: usize = 256;
const MAX_ADDRESS_CHARS: usize = 512;
const MAX_SALE_PERCENT: u64 = 100;
const NOT_AN_OBJECT: &str = "must be an object";
/// 2100-01-01T00:00:00Z.
const MAX_PAYMENT_DT: u64 = 4_102_444_800;

/// Checks every rule. Returns the order only if there is no fault.
///
/// # Errors
/// Returns all faults.
pub(super) fn validate(
    document: Field<RawOrder<'_>>,
    rules: OrderRules,
) -> Result<Order, Vec<Fault>> {
    let mut check = Check {
        rules,
        place: Place::Document,
        faults: Vec::new(),
    };
    let Field::Value(raw) = document else {
        return Err(vec![Fault::of_document(NOT_AN_OBJECT.into())]);
    };
    let order = Order {
        order_uid: check.order_uid(raw.order_uid),
        track_number: check.required_text("track_number", raw.track_number),
        entry: check.optional_text("entry", raw.entry),
        delivery: check.delivery(raw.delivery),
        payment: check.payment(raw.payment),
        items: check.items(raw.items),
        locale: check.optional_text("locale", raw.locale),
        internal_signature: check.optional_text("internal_signature", raw.internal_signature),
        customer_id: check.required_text("customer_id", raw.customer_id),
        delivery_service: check.optional_text("delivery_service", raw.delivery_service),
        shardkey: check.optional_text("shardkey", raw.shardkey),
        sm_id: check.optional_integer("sm_id", raw.sm_id, MAX_INTEGER),
        date_created: check.date_created(raw.date_created),
        oof_shard: check.optional_text("oof_shard", raw.oof_shard),
    };
    if check.faults.is_empty() {
        Ok(order)
    } else {
        Err(check.faults)
    }
}

/// The object whose fields are being checked. It is shown as its JSON pointer.
#[derive(Clone, Copy)]
enum Place {
    Document,
    Member(&'static str),
    Item(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document => Ok(()),
            Self::Member(name) => write!(formatter, "/{name}"),
            Self::Item(index) => write!(formatter, "/items/{index}"),
        }
    }
}

/// Collects faults. A faulty field yields an empty value, which nobody sees.
struct Check {
    rules: OrderRules,
    place: Place,
    faults: Vec<Fault>,
}

impl Check {
    fn fault(&mut self, field: &str, detail: impl Into<Cow<'static, str>>) {
        self.faults.push(Fault {
            pointer: format!("{}/{field}", self.place),
            detail: detail.into(),
        });
    }

    fn delivery(&mut self, field: Field<RawDelivery<'_>>) -> Delivery {
        // Digital goods have no delivery, and often only one of phone and e-mail is known.
        let field = match field {
            Field::Absent => Field::Value(RawDelivery::default()),
            given => given,
        };
        let raw = self.object(Place::Member("delivery"), field);
        let delivery = Delivery {
            name: self.optional_text("name", raw.name),
            phone: self.phone(raw.phone),
            zip: self.optional_text("zip", raw.zip),
            city: self.optional_text("city", raw.city),
            address: self.address(raw.address),
            region: self.optional_text("region", raw.region),
            email: self.email(raw.email),
        };
        self.place = Place::Document;
        delivery
    }

    fn payment(&mut self, field: Field<RawPayment<'_>>) -> Payment {
        let raw = self.object(Place::Member("payment"), field);
        let payment = Payment {
            transaction: self.required_text("transaction", raw.transaction),
            request_id: self.optional_text("request_id", raw.request_id),
            currency: self.currency(raw.currency),
            provider: self.required_text("provider", raw.provider),
            amount: self.required_integer("amount", raw.amount),
            payment_dt: self.optional_integer("payment_dt", raw.payment_dt, MAX_PAYMENT_DT),
            bank: self.optional_text("bank", raw.bank),
            delivery_cost: self.optional_integer("delivery_cost", raw.delivery_cost, MAX_INTEGER),
            goods_total: self.optional_integer("goods_total", raw.goods_total, MAX_INTEGER),
            custom_fee: self.optional_integer("custom_fee", raw.custom_fee, MAX_INTEGER),
        };
        self.place = Place::Document;
        payment
    }

    fn items(&mut self, field: Field<Vec<Field<RawItem<'_>>>>) -> Vec<Item> {
        let raw_items = match field {
            Field::Value(items) if (1..=MAX_ITEMS).contains(&items.len()) => items,
            Field::WrongType(_) => {
                self.fault("items", "must be an array");
                return Vec::new();
            }
            // If there are too many items, none is checked: a hostile body could yield any number of faults.
            _ => {
                self.fault("items", format!("must have 1..={MAX_ITEMS} items"));
                return Vec::new();
            }
        };
        // `collect` would reuse the memory of the raw items, which is more than twice what items take.
        let mut items = Vec::with_capacity(raw_items.len());
        for (index, item) in raw_items.into_iter().enumerate() {
            items.push(self.item(index, item));
        }
        self.place = Place::Document;
        items
    }

    fn item(&mut self, index: usize, field: Field<RawItem<'_>>) -> Item {
        let raw = self.object(Place::Item(index), field);
        Item {
            chrt_id: self.required_integer("chrt_id", raw.chrt_id),
            track_number: self.optional_text("track_number", raw.track_number),
            price: self.required_integer("price", raw.price),
            rid: self.optional_text("rid", raw.rid),
            name: self.required_text("name", raw.name),
            sale: i32::try_from(self.optional_integer("sale", raw.sale, MAX_SALE_PERCENT))
                .unwrap_or_default(),
            size: self.optional_text("size", raw.size),
            total_price: self.required_integer("total_price", raw.total_price),
            nm_id: self.optional_integer("nm_id", raw.nm_id, MAX_INTEGER),
            brand: self.required_text("brand", raw.brand),
            status: self.optional_integer("status", raw.status, MAX_INTEGER),
        }
    }

    /// Enters an object: the fields that are checked next are its fields.
    ///
    /// An object that is absent is checked as an empty one, so that each of its required fields is named, too.
    fn object<T: Default>(&mut self, place: Place, field: Field<T>) -> T {
        self.place = place;
        let fault = match field {
            Field::Value(object) => return object,
            Field::Absent => "is required",
            Field::WrongType(_) => NOT_AN_OBJECT,
        };
        self.faults.push(Fault {
            pointer: place.to_string(),
            detail: fault.into(),
        });
        T::default()
    }

    fn required_text(&mut self, name: &str, field: Text<'_>) -> CompactString {
        if matches!(field, Field::Absent) {
            self.fault(name, "is required");
        } else if matches!(&field, Field::Value(text) if text.is_empty()) {
            self.fault(name, "must not be empty");
        }
        self.optional_text(name, field)
    }

    fn optional_text(&mut self, name: &str, field: Text<'_>) -> CompactString {
        let text = self.text(name, field, MAX_TEXT_CHARS);
        if has_control_characters(&text) {
            self.fault(name, "must have no control characters");
        }
        text.into()
    }

    /// People write addresses in several lines.
    fn address(&mut self, field: Text<'_>) -> CompactString {
        let text = self.text("address", field, MAX_ADDRESS_CHARS);
        let is_allowed = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
        if has_control_characters(&text) && !text.chars().all(is_allowed) {
            self.fault(
                "address",
                "must have no control characters except line breaks and tabs",
            );
        }
        text.into()
    }

    /// The text, checked for its length; empty if it is absent or of the wrong type.
    fn text<'a>(&mut self, name: &str, field: Text<'a>, max_chars: usize) -> Cow<'a, str> {
        let text = match field {
            Field::Value(text) => text,
            Field::Absent => return Cow::Borrowed(""),
            Field::WrongType(kind) => {
                let detail = match kind {
                    Kind::Integer | Kind::NegativeInteger | Kind::Number => {
                        "must be a string: put the number into quotes"
                    }
                    _ => "must be a string",
                };
                self.fault(name, detail);
                return Cow::Borrowed("");
            }
        };
        // A text never has more characters than bytes, so only a long text is counted.
        if text.len() > max_chars && text.chars().count() > max_chars {
            self.fault(name, format!("must have at most {max_chars} characters"));
        }
        text
    }

    /// Checks a text against one more rule. The rule is skipped if the text has a fault already.
    fn ruled(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Self) -> CompactString,
        rule: impl FnOnce(&str) -> bool,
        detail: &'static str,
    ) -> CompactString {
        let faults_before = self.faults.len();
        let text = read(self);
        if self.faults.len() == faults_before && !rule(&text) {
            self.fault(name, detail);
        }
        text
    }

    /// Checks the form of a text if the rules ask for it. An empty text has no form.
    fn formed(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Self) -> CompactString,
        form: fn(&str) -> bool,
        detail: &'static str,
    ) -> CompactString {
        let is_checked = self.rules == OrderRules::Standard;
        let rule = |text: &str| !is_checked || text.is_empty() || form(text);
        self.ruled(name, read, rule, detail)
    }

    fn order_uid(&mut self, field: Text<'_>) -> OrderUid {
        let read = |check: &mut Self| check.required_text("order_uid", field);
        OrderUid(self.ruled("order_uid", read, OrderUid::is_valid, OrderUid::RULE))
    }

    fn phone(&mut self, field: Text<'_>) -> CompactString {
        const DETAIL: &str = "must have 5 to 32 characters out of digits, spaces and +()-./x#, at least 5 of them digits";
        fn is_phone(text: &str) -> bool {
            (5..=32).contains(&text.len())
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || b" +()-./x#".contains(&byte))
                && text.bytes().filter(u8::is_ascii_digit).count() >= 5
        }
        let read = |check: &mut Self| check.optional_text("phone", field);
        self.formed("phone", read, is_phone, DETAIL)
    }

    fn email(&mut self, field: Text<'_>) -> CompactString {
        fn is_email(text: &str) -> bool {
            let options = email_address::Options::default().without_display_text();
            email_address::EmailAddress::parse_with_options(text, options).is_ok()
        }
        let read = |check: &mut Self| check.optional_text("email", field);
        self.formed("email", read, is_email, "must be an e-mail address")
    }

    fn currency(&mut self, field: Text<'_>) -> CompactString {
        fn is_currency(text: &str) -> bool {
            text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase())
        }
        const DETAIL: &str = "must be three upper-case letters";
        let read = |check: &mut Self| check.required_text("currency", field);
        self.formed("currency", read, is_currency, DETAIL)
    }

    fn date_created(&mut self, field: Text<'_>) -> DateTime<Utc> {
        let faults_before = self.faults.len();
        let text = self.required_text("date_created", field);
        let parsed = parse_date(&text);
        if let Err(detail) = parsed
            && self.faults.len() == faults_before
        {
            self.fault("date_created", detail);
        }
        parsed.unwrap_or_default()
    }

    fn required_integer(&mut self, name: &str, field: Integer) -> i64 {
        if matches!(field, Field::Absent) {
            self.fault(name, "is required");
        }
        self.optional_integer(name, field, MAX_INTEGER)
    }

    fn optional_integer(&mut self, name: &str, field: Integer, max: u64) -> i64 {
        let hint = match field {
            Field::Value(integer) if integer <= max => {
                return i64::try_from(integer).unwrap_or_default();
            }
            Field::Absent => return 0,
            Field::WrongType(Kind::Number) => ", without a fraction",
            Field::WrongType(Kind::NegativeInteger) => ", not negative",
            Field::WrongType(Kind::Text) => ", not in quotes",
            Field::Value(_) | Field::WrongType(_) => "",
        };
        self.fault(name, format!("must be an integer in 0..={max}{hint}"));
        0
    }
}

/// Reads a time, to the microsecond.
///
/// # Errors
/// Says what is expected.
fn parse_date(text: &str) -> Result<DateTime<Utc>, &'static str> {
    const EXPECTED: &str = "must be an RFC 3339 time with a zone, such as 2021-11-26T06:22:19Z";
    let Ok(local) = DateTime::parse_from_rfc3339(text) else {
        return Err(if NaiveDate::from_str(text).is_ok() {
            "must be an RFC 3339 time with a zone, such as 2021-11-26T06:22:19Z: the time of day is missing"
        } else if NaiveDateTime::from_str(text).is_ok() {
            "must be an RFC 3339 time with a zone, such as 2021-11-26T06:22:19Z: the zone is missing, such as Z or +03:00"
        } else {
            EXPECTED
        });
    };
    // chrono reads second 60 as a nanosecond above 999,999,999. PostgreSQL would return another second.
    if local.nanosecond() >= 1_000_000_000 {
        return Err("must not have second 60");
    }
    let utc = local.with_timezone(&Utc).trunc_subsecs(6);
    if (1..=9999).contains(&utc.year()) {
        Ok(utc)
    } else {
        Err("must be in the years 0001 to 9999 in UTC")
    }
}

/// Returns whether a text contains a control character.
///
/// In UTF-8 every control character begins with a byte below 0x20, with 0x7F, or with 0xC2. Hardly any text contains one
/// of these bytes. The search for them has no branch, so the compiler can check many bytes at once.
fn has_control_characters(text: &str) -> bool {
    let may_begin_one = |byte: u8| (byte < 0x20) | (byte == 0x7f) | (byte == 0xc2);
    let may_have_one = text
        .bytes()
        .fold(false, |found, byte| found | may_begin_one(byte));
    may_have_one && text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests;
