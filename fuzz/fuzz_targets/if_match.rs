//! Preconditions of any bytes: only a tag with the revision, or `*`, matches.

#![no_main]

use api::http::conditional::{Reading, reading};
use api::repository::Revision;
use libfuzzer_sys::fuzz_target;
use shared::db::HistoryId;
use warp::http::header::{IF_MATCH, IF_NONE_MATCH};
use warp::http::{HeaderMap, HeaderValue};

fuzz_target!(|input: (Vec<&[u8]>, i64)| {
    let (values, version) = input;
    let revision = Revision {
        // The database has no negative versions.
        version: version & i64::MAX,
        history: HistoryId(0xab),
    };
    let (mut only, mut but) = (HeaderMap::new(), HeaderMap::new());
    let mut text = Vec::new();
    for value in values.into_iter().take(16) {
        if let Ok(header) = HeaderValue::from_bytes(value) {
            only.append(IF_MATCH, header.clone());
            but.append(IF_NONE_MATCH, header);
            text.extend_from_slice(value);
        }
    }
    if only.is_empty() {
        return;
    }
    let fits = reading(&only, revision) == Reading::Send;
    assert_eq!(fits, reading(&but, revision) == Reading::NotModified);
    let text = String::from_utf8_lossy(&text);
    // A proxy may have appended a coding.
    assert!(!fits || text.contains('*') || text.contains(&format!("\"{revision}")));
    let own = HeaderValue::from_str(&format!("\"{revision}\"")).expect("digits and quotes");
    only.append(IF_MATCH, own);
    assert_eq!(reading(&only, revision), Reading::Send);
});
