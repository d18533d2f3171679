//! What accepting an incident changes in a partition's row. It does no I/O.

use chrono::TimeDelta;

use super::OffsetRow;
use super::incidents::{Incident, Kind};
use crate::guard::Doubt;
use crate::record::{Incarnation, Offset};
use crate::witnesses::Witnesses;

/// A timestamp that is further in the future than this is not believed when a topic was made anew. Otherwise one producer's
/// wrong clock could put every record in doubt for years.
const MAX_CLOCK_LEAD: TimeDelta = TimeDelta::days(1);

/// How an operator accepts an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// As it was recorded.
    AsRecorded,
    /// Reading continues at this offset.
    ResumeAt(Offset),
    /// The topic was made anew, and none of its records were read.
    NewTopic,
}

/// Returns the row as it is after an incident was accepted. `new_incarnation` is greater than any before. `now_ms` is the time
/// in milliseconds since 1970.
///
/// # Errors
/// Returns a text for the operator if only the operator can say where reading continues.
pub fn accept(
    row: &OffsetRow,
    incident: &Incident,
    decision: Decision,
    new_incarnation: Incarnation,
    now_ms: i64,
) -> Result<OffsetRow, String> {
    let kind: Kind = incident.kind.parse().map_err(|_| {
        format!(
            "this program does not know incidents of the kind {}",
            incident.kind
        )
    })?;
    let next_offset = match (decision, incident.resume_offset) {
        (Decision::AsRecorded, Some(offset)) | (Decision::ResumeAt(offset), _) => offset,
        (Decision::NewTopic, _) => incident.low_watermark,
        (Decision::AsRecorded, None) => {
            return Err(format!(
                "say where to continue, with --new-topic or --resume-at: {}",
                incident.detail
            ));
        }
    };
    let mut accepted = OffsetRow {
        next_offset,
        ..row.clone()
    };
    if kind == Kind::Retention && decision != Decision::NewTopic {
        return Ok(accepted);
    }
    accepted.incarnation = new_incarnation;
    accepted.replay_until = None;
    accepted.last_offset = None;
    accepted.last_timestamp = None;
    let is_same_log = kind == Kind::Truncated && decision != Decision::NewTopic;
    let doubt = if is_same_log {
        accepted.log_since = Some(row.log_since());
        let end = incident.matched_offset.map_or(Offset(0), Offset::next);
        accepted.witnesses.truncate(end);
        Doubt {
            until: row.replay_until.max(Some(row.next_offset)),
            timestamp_ms: row.max_timestamp.unwrap_or(i64::MAX),
        }
    } else {
        accepted.log_since = Some(new_incarnation);
        accepted.witnesses = Witnesses::default();
        let latest = now_ms.saturating_add(MAX_CLOCK_LEAD.num_milliseconds());
        Doubt {
            until: None,
            timestamp_ms: row
                .max_timestamp
                .map_or(latest, |newest| newest.min(latest)),
        }
    };
    accepted.set_doubt(row.doubt().map_or(doubt, |earlier| earlier.or(doubt)));
    Ok(accepted)
}
