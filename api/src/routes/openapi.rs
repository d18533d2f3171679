//! Compares `openapi.json`, which is written by hand, with the code: routes, methods, statuses and codes.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use shared::order::Order;
use shared::testing::model_json;
use strum::IntoEnumIterator;

use super::{ROUTES, Route};
use crate::handlers::web::SCRIPTS;
use crate::http::problem::ApiError;

const DOCUMENT: &str = include_str!("../../openapi.json");

fn document() -> Value {
    serde_json::from_str(DOCUMENT).unwrap()
}

/// Lists the differences between the document and the code.
fn differences(document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("route", described_routes(document), routes(), &mut found);
    compare("code", described_codes(document), codes(), &mut found);
    let listed = &document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"];
    compare("code of Problem", texts(listed), names(), &mut found);
    dangling(document, document, &mut found);
    found.extend(
        operations(document)
            .filter(|(_, _, operation)| operation["responses"]["500"].is_null())
            .map(|(method, path, _)| format!("500 of {method} {path} is not described")),
    );
    found
}

fn compare(
    what: &str,
    described: BTreeSet<String>,
    real: BTreeSet<String>,
    found: &mut Vec<String>,
) {
    found.extend(
        real.difference(&described)
            .map(|each| format!("{what} {each} is not described")),
    );
    found.extend(
        described
            .difference(&real)
            .map(|each| format!("{what} {each} does not exist")),
    );
}

fn routes() -> BTreeSet<String> {
    let methods_of = |route: &Route| {
        let allow = route.allow();
        let methods = allow.split(", ");
        methods
            .map(|method| format!("{method} {}", route.path))
            .collect::<Vec<_>>()
    };
    ROUTES.iter().flat_map(methods_of).collect()
}

fn described_routes(document: &Value) -> BTreeSet<String> {
    operations(document)
        .map(|(method, path, _)| format!("{method} {path}"))
        .collect()
}

/// Lists each described operation with its method and path.
fn operations(document: &Value) -> impl Iterator<Item = (String, &String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let members = paths.iter().flat_map(|(path, item)| {
        let members = item.as_object().unwrap().iter();
        members.map(move |(member, operation)| (member.to_uppercase(), path, operation))
    });
    members.filter(|(member, _, _)| member != "PARAMETERS")
}

fn codes() -> BTreeSet<String> {
    ApiError::iter()
        .map(|error| {
            let (status, code, _) = error.kind();
            format!("{status} {code}")
        })
        .collect()
}

fn names() -> BTreeSet<String> {
    ApiError::iter()
        .map(|error| error.kind().1.to_owned())
        .collect()
}

/// Lists every pair of `status` and `code`, wherever the document describes a problem.
fn described_codes(part: &Value) -> BTreeSet<String> {
    let status = &part["properties"]["status"]["const"];
    let codes = texts(&part["properties"]["code"]["enum"]);
    let own = codes
        .into_iter()
        .filter(|_| !status.is_null())
        .map(|code| format!("{status} {code}"));
    own.chain(children(part).flat_map(described_codes))
        .collect()
}

/// Finds references whose target is missing.
fn dangling(document: &Value, part: &Value, found: &mut Vec<String>) {
    if let Some(reference) = part.get("$ref").and_then(Value::as_str) {
        let pointer = reference.trim_start_matches('#');
        if document.pointer(pointer).is_none() {
            found.push(format!("{reference} is missing"));
        }
    }
    for child in children(part) {
        dangling(document, child, found);
    }
}

fn texts(list: &Value) -> BTreeSet<String> {
    let texts = list.as_array().into_iter().flatten();
    texts
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

fn children(part: &Value) -> impl Iterator<Item = &Value> {
    let members = part
        .as_object()
        .into_iter()
        .flat_map(|object| object.values());
    members.chain(part.as_array().into_iter().flatten())
}

#[test]
fn the_document_describes_what_there_is() {
    let document = document();
    assert_eq!(differences(&document), [""; 0]);
    assert_eq!(document["openapi"], "3.1.0");
}

#[test]
fn the_document_names_the_modules_of_the_page() {
    let document = document();
    let names = &document["components"]["parameters"]["ScriptFile"]["schema"]["enum"];
    let served = SCRIPTS.iter().map(|(name, _)| (*name).to_owned());
    assert_eq!(texts(names), served.collect());
}

#[test]
fn a_route_that_is_removed_is_missed() {
    for route in &ROUTES {
        let path = route.path;
        for method in route.allow().split(", ") {
            let mut document = document();
            let item = document["paths"][path].as_object_mut().unwrap();
            item.remove(&method.to_lowercase()).unwrap();
            let missed = format!("route {method} {path} is not described");
            // Its own codes may be missed as well.
            let differences = differences(&document);
            assert!(differences.contains(&missed), "{differences:?}");
        }
    }
    let mut document = document();
    document["paths"]["/more"] = json!({"get": {}});
    let more = [
        "route GET /more does not exist",
        "500 of GET /more is not described",
    ];
    assert_eq!(differences(&document), more);
}

#[test]
fn a_code_that_is_removed_is_missed() {
    for name in names() {
        let mut document = document();
        remove_code(&mut document["paths"], &name);
        remove_code(&mut document["components"]["responses"], &name);
        let missed = differences(&document);
        assert!(
            missed.len() == 1 && missed[0].ends_with(&format!("{name} is not described")),
            "{name}: {missed:?}"
        );
    }
    let text = DOCUMENT.replace("\"overloaded\"", "\"overlooked\"");
    let renamed: Value = serde_json::from_str(&text).unwrap();
    assert!(
        differences(&renamed).contains(&"code 503 overlooked does not exist".to_owned()),
        "{:?}",
        differences(&renamed)
    );
}

/// Answers need no such test: their schemas name every field as required and allow no others, and the suite checks every
/// answer against them.
#[test]
fn orders_of_clients_must_have_the_fields_that_the_document_requires() {
    let document = document();
    let model: Value = serde_json::from_str(model_json()).unwrap();
    for (schema, pointer) in [
        ("OrderInput", ""),
        ("DeliveryInput", "/delivery"),
        ("PaymentInput", "/payment"),
        ("ItemInput", "/items/0"),
    ] {
        let schema = &document["components"]["schemas"][schema];
        let required = texts(&schema["required"]);
        let described = schema["properties"].as_object().unwrap().keys();
        let fields = model.pointer(pointer).unwrap().as_object().unwrap().keys();
        assert_eq!(
            described.collect::<BTreeSet<_>>(),
            fields.clone().collect::<BTreeSet<_>>(),
            "{pointer}"
        );
        for field in fields {
            let mut order = model.clone();
            let part = order.pointer_mut(pointer).unwrap();
            part.as_object_mut().unwrap().remove(field);
            let is_refused = Order::decode(order.to_string().as_bytes()).is_err();
            assert_eq!(is_refused, required.contains(field), "{pointer}/{field}");
        }
    }
}

#[test]
fn patches_have_the_fields_of_orders() {
    let document = document();
    let schemas = &document["components"]["schemas"];
    let fields = |schema: &Value| {
        let properties = schema["properties"].as_object().unwrap();
        properties.keys().cloned().collect::<BTreeSet<_>>()
    };
    let patch = &schemas["OrderPatch"];
    let payment = &patch["properties"]["payment"];
    assert_eq!(fields(patch), fields(&schemas["OrderInput"]));
    assert_eq!(fields(payment), fields(&schemas["PaymentInput"]));
}

fn remove_code(part: &mut Value, code: &str) {
    match part {
        Value::Array(elements) => {
            elements.retain(|element| element != code);
            elements
                .iter_mut()
                .for_each(|element| remove_code(element, code));
        }
        Value::Object(members) => members
            .values_mut()
            .for_each(|member| remove_code(member, code)),
        _ => {}
    }
}
