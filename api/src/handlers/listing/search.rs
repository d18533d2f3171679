//! `POST /api/v1/orders/search`: the list with filters on personal data, which belongs neither in URLs nor in logs.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use warp::reply::Response;

use super::request::{ListRequest, MAX_LIMIT, Values};
use super::{answer, finish};
use crate::handlers::Call;
use crate::http::problem::ApiError;
use crate::http::{JSON, body};

/// The path of the search.
pub const SEARCH_PATH: &str = "/api/v1/orders/search";

const MEMBERS: [&str; 12] = [
    "phone",
    "email",
    "order_uid_prefix",
    "track_number_prefix",
    "customer_id",
    "track_number",
    "from",
    "to",
    "limit",
    "cursor",
    "count",
    "view",
];

/// Lists the orders that match the body.
pub async fn search(
    Call {
        app,
        grant,
        head,
        body,
        ..
    }: Call,
) -> Result<Response, ApiError> {
    head.parameters(&[])?;
    let body = body::read(&head, body, JSON, app.body_deadline).await?;
    let request = ListRequest::new(values(&body)?, &head)?;
    app.require_schema()?;
    let response = answer(&app, grant, &head, request).await?;
    finish(&head, response)
}

/// Reads the members of the body. A member that is `null` counts as absent.
fn values(body: &[u8]) -> Result<Values, ApiError> {
    let Members(members) = serde_json::from_slice(body).map_err(|error| {
        // The text of a wrong type would repeat the value.
        let text = if error.is_data() {
            "the body must be a JSON object".to_owned()
        } else {
            error.to_string()
        };
        ApiError::MalformedJson(text)
    })?;
    let mut values = [const { None }; MEMBERS.len()];
    for (name, value) in members {
        let Some(index) = MEMBERS.iter().position(|each| *each == name) else {
            return Err(ApiError::unknown_parameter(&name, &MEMBERS));
        };
        let name = MEMBERS[index];
        if values[index].replace(text(name, value)?).is_some() {
            let detail = "is given twice";
            return Err(ApiError::InvalidParameter { name, detail });
        }
    }
    let [
        phone,
        email,
        order_uid_prefix,
        track_number_prefix,
        customer_id,
        track_number,
        from,
        to,
        limit,
        cursor,
        count,
        view,
    ] = values.map(Option::flatten);
    Ok(Values {
        limit,
        cursor,
        customer_id,
        track_number,
        from,
        to,
        count,
        view,
        phone,
        email,
        order_uid_prefix,
        track_number_prefix,
    })
}

/// Returns a member as the text that it would be as a parameter.
fn text(name: &'static str, value: Value) -> Result<Option<String>, ApiError> {
    let invalid = |detail| Err(ApiError::InvalidParameter { name, detail });
    match (name, value) {
        (_, Value::Null) => Ok(None),
        ("limit", Value::Number(number)) => {
            // 50.0 is an integer, too.
            let whole = number.as_f64().filter(|number| number.fract() == 0.0);
            let limit = whole.ok_or(ApiError::InvalidLimit { max: MAX_LIMIT })?;
            Ok(Some(limit.to_string()))
        }
        ("limit", _) => invalid("must be a number"),
        (_, Value::String(text)) => Ok(Some(text)),
        _ => invalid("must be a string"),
    }
}

/// The members of an object, including those that are given twice.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collecting;

        impl<'de> Visitor<'de> for Collecting {
            type Value = Members;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Collecting)
    }
}
