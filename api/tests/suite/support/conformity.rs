//! Checks the status, the headers and the body of every answer that a test gets against `openapi.json`.
//!
//! So the document cannot differ from any answer that a test provokes. This includes answers during outages, which
//! schemathesis does not see.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use jsonschema::Validator;
use serde_json::{Value, json};

use super::Answer;

pub static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../../openapi.json")).unwrap());

/// Headers that belong to HTTP itself.
const GENERAL: [&str; 5] = [
    "connection",
    "content-length",
    "content-type",
    "date",
    "transfer-encoding",
];

/// Headers that any answer may have, with the names of their descriptions. The document mentions them at its beginning.
const ON_ANY: [(&str, &str); 8] = [
    ("access-control-allow-headers", "AccessControlAllowHeaders"),
    ("access-control-allow-methods", "AccessControlAllowMethods"),
    ("access-control-allow-origin", "AccessControlAllowOrigin"),
    (
        "access-control-expose-headers",
        "AccessControlExposeHeaders",
    ),
    ("access-control-max-age", "AccessControlMaxAge"),
    ("ratelimit", "RateLimit"),
    ("ratelimit-policy", "RateLimitPolicy"),
    ("vary", "Vary"),
];

/// Which response describes a refusal that any request may get. The document mentions them at its beginning.
const REFUSALS: [(&str, &str); 4] = [
    ("bad_request", "BadRequest"),
    ("uri_too_long", "UriTooLong"),
    ("header_too_large", "HeaderTooLarge"),
    ("not_implemented", "NotImplemented"),
];

/// Which response describes the answer to a request that belongs to no operation.
const OTHERWISE: [(u16, &str); 5] = [
    (204, "Preflight"),
    (400, "InvalidOrderUid"),
    (404, "NoSuchEndpoint"),
    (405, "MethodNotAllowed"),
    (429, "RateLimited"),
];

/// Panics if the document does not allow an answer.
pub fn check(method: &str, target: &str, answer: &Answer) {
    let faults = faults(method, target, answer);
    assert!(
        faults.is_empty(),
        "{method} {target}: {}, which openapi.json does not allow: {}\n{:?}\n{}",
        answer.status,
        faults.join("; "),
        answer.headers,
        answer.body
    );
}

/// Lists everything about an answer that the document does not allow.
pub fn faults(method: &str, target: &str, answer: &Answer) -> Vec<String> {
    let refusal = REFUSALS
        .iter()
        .find(|(code, _)| answer.body.contains(&format!("\"code\":\"{code}\"")));
    let response = match refusal {
        Some((_, name)) => Some(&DOCUMENT["components"]["responses"][name]),
        None => response(method, target, answer.status),
    };
    let Some(response) = response else {
        return vec!["the status is not described".to_owned()];
    };
    let mut faults = header_faults(response, answer);
    faults.extend(body_faults(response, answer, method == "HEAD"));
    faults
}

/// Returns the description of an answer with this status.
fn response(method: &str, target: &str, status: u16) -> Option<&'static Value> {
    let path = target.split('?').next().unwrap();
    let item = path_item(path);
    let operation = item.map(|item| &item[method.to_lowercase()]);
    let Some(operation) = operation.filter(|operation| !operation.is_null()) else {
        let mut otherwise = OTHERWISE
            .iter()
            .filter(|(status, _)| *status != 404 || item.is_none());
        let (_, name) = otherwise.find(|(each, _)| *each == status)?;
        return Some(&DOCUMENT["components"]["responses"][name]);
    };
    let response = resolved(&operation["responses"][&status.to_string()]);
    (!response.is_null()).then_some(response)
}

fn path_item(path: &str) -> Option<&'static Value> {
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let fits = |template: &str| match template.split_once('{') {
        Some((prefix, _)) => path
            .strip_prefix(prefix)
            .is_some_and(|segment| !segment.contains('/')),
        None => path == template,
    };
    let found = paths.iter().find(|(template, _)| fits(template));
    found.map(|(_, item)| item)
}

pub fn resolved(part: &'static Value) -> &'static Value {
    match part.get("$ref").and_then(Value::as_str) {
        Some(reference) => DOCUMENT.pointer(&reference[1..]).unwrap(),
        None => part,
    }
}

fn header_faults(response: &'static Value, answer: &Answer) -> Vec<String> {
    let described: HashMap<String, &Value> = response["headers"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, header)| (name.to_lowercase(), resolved(header)))
        .collect();
    let missing = described
        .iter()
        .filter(|(name, header)| header["required"] == true && answer.header(name).is_none())
        .map(|(name, _)| format!("{name} is missing"));
    let wrong = answer.headers.iter().filter_map(|(name, value)| {
        if GENERAL.contains(&name.as_str()) {
            return None;
        }
        let on_any = ON_ANY.iter().find(|(each, _)| each == name);
        let on_any = on_any.map(|(_, component)| &DOCUMENT["components"]["headers"][component]);
        let Some(header) = described.get(name).copied().or(on_any) else {
            return Some(format!("{name} is not described"));
        };
        let schema = &header["schema"];
        let value = match schema["type"].as_str() {
            Some("integer") => value
                .parse::<u64>()
                .map_or(json!(value), |number| json!(number)),
            _ => json!(value),
        };
        let faults = schema_faults(schema, &value);
        (!faults.is_empty()).then(|| format!("{name}: {}", faults.join(", ")))
    });
    missing.chain(wrong).collect()
}

fn body_faults(response: &'static Value, answer: &Answer, is_head: bool) -> Vec<String> {
    let content = &response["content"];
    if answer.body.is_empty() && (is_head || content.is_null()) {
        return Vec::new();
    }
    let media_type = answer.header("content-type").unwrap_or_default();
    let essence = media_type.split(';').next().unwrap();
    match &content[essence] {
        Value::Null => vec![format!("a body of type {media_type:?} is not described")],
        described if essence.ends_with("/json") || essence.ends_with("+json") => {
            schema_faults(&described["schema"], &answer.json())
        }
        _ => Vec::new(),
    }
}

/// Lists where a value does not match a schema of the document.
pub fn schema_faults(schema: &'static Value, value: &Value) -> Vec<String> {
    let validator = validator(schema);
    let errors = validator.iter_errors(value);
    errors
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

/// Builds one validator for each schema of the document, once.
fn validator(schema: &'static Value) -> Arc<Validator> {
    static MADE: LazyLock<Mutex<HashMap<usize, Arc<Validator>>>> = LazyLock::new(Mutex::default);
    let mut made = MADE.lock().unwrap();
    let key = std::ptr::from_ref(schema).addr();
    let validator = made.entry(key).or_insert_with(|| {
        let whole = json!({"allOf": [schema], "components": DOCUMENT["components"]});
        let options = jsonschema::draft202012::options().should_validate_formats(true);
        Arc::new(options.build(&whole).unwrap())
    });
    Arc::clone(validator)
}
