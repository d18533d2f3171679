//! Incidents: how a mismatch between the broker's log and what was read is found, and the row that records it.
//!
//! Nothing is skipped and nothing is read twice silently. The partition waits until an operator accepts the incident, see
//! [`super::acceptance`].

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use rdkafka::error::KafkaResult;
use shared::db::schema::offset_incidents;

use super::OffsetRow;
use crate::kafka::{Probe, Watermarks};
use crate::record::{Consumer, Incarnation, Offset, Partition};
use crate::witnesses::{Witness, Witnesses};

/// A partition's row before it is locked. The brokers are asked between the two looks, because no broker is asked inside
/// a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glimpse {
    /// The partition's incarnation.
    pub incarnation: Incarnation,
    /// The offset to continue from.
    pub next_offset: Offset,
    /// Records that were read.
    pub witnesses: Witnesses,
}

/// What the brokers hold of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The incarnation that the row had when the brokers were asked.
    pub incarnation: Incarnation,
    /// The offsets that the partition holds.
    pub watermarks: Watermarks,
    /// What the witnesses say, if something does not match.
    pub change: Option<Change>,
}

/// What the witnesses say about a log that is not the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// A witness, and the other record that has its offset now. None: the log is only shorter than it was.
    pub replaced: Option<(Witness, Witness)>,
    /// The newest witness that still matches. The log is the one that was read up to there.
    pub newest_match: Option<Witness>,
    /// Up to which offset the log was read, before a rewind perhaps.
    pub read_until: Offset,
}

impl Change {
    /// Compares witnesses with the log. `more` are further records that were read. `look_up` returns the record at an offset,
    /// and `None` if there is none. That proves nothing: compaction leaves gaps.
    ///
    /// Looks up two records and `more` while nothing has changed, and all witnesses otherwise.
    ///
    /// # Errors
    /// Returns the error of `look_up`.
    pub fn find<E>(
        glimpse: &Glimpse,
        more: &[Witness],
        watermarks: Watermarks,
        mut look_up: impl FnMut(Offset) -> Result<Option<Witness>, E>,
    ) -> Result<Option<Self>, E> {
        let mut replacement_of = |witness: &Witness| {
            if !(watermarks.low..watermarks.high).contains(&witness.offset()) {
                return Ok(Look::Missing);
            }
            Ok(match look_up(witness.offset())? {
                None => Look::Missing,
                Some(found) if found == *witness => Look::Same,
                Some(found) => Look::Replaced(found),
            })
        };
        let newest = glimpse
            .witnesses
            .newest()
            .map(|witness| witness.offset().next());
        let mut change = Self {
            replaced: None,
            newest_match: None,
            read_until: newest.map_or(glimpse.next_offset, |end| end.max(glimpse.next_offset)),
        };
        for witness in glimpse.witnesses.first_looks().chain(more) {
            if let Look::Replaced(found) = replacement_of(witness)? {
                change.replaced = Some((*witness, found));
            }
        }
        if change.replaced.is_none() && change.read_until <= watermarks.high {
            return Ok(None);
        }
        for witness in glimpse.witnesses.iter() {
            if (change.replaced).is_some_and(|(replaced, _)| replaced.offset() <= witness.offset())
            {
                break;
            }
            match replacement_of(witness)? {
                Look::Same => change.newest_match = Some(*witness),
                Look::Replaced(found) => {
                    change.replaced = Some((*witness, found));
                    break;
                }
                Look::Missing => {}
            }
        }
        Ok(Some(change))
    }
}

/// What stands at the offset of a witness.
enum Look {
    Missing,
    Same,
    Replaced(Witness),
}

impl Sighting {
    /// Asks the brokers. `more` are records that were read and are to be looked up in any case.
    ///
    /// # Errors
    /// Returns an error if no broker answers in time.
    pub fn take(
        probe: &Probe,
        partition: Partition,
        glimpse: &Glimpse,
        more: &[Witness],
    ) -> KafkaResult<Self> {
        let watermarks = probe.watermarks(partition)?;
        let look_up = |offset| probe.record_at(partition, offset);
        Ok(Self {
            incarnation: glimpse.incarnation,
            watermarks,
            change: Change::find(glimpse, more, watermarks, look_up)?,
        })
    }
}

/// The kinds of incidents, in the table in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Kind {
    /// Retention deleted records before they were read.
    Retention,
    /// The log was cut, and perhaps written anew from there on. A witness still matches.
    Truncated,
    /// No witness matches: the topic was made anew, or it is a copy with other offsets.
    Recreated,
}

/// What does not match, and where reading continues once an operator accepts that.
#[derive(Debug, PartialEq, Eq)]
pub struct Gap {
    /// Its kind.
    pub kind: Kind,
    /// What was seen.
    pub what: String,
    /// Where reading continues. None: only the operator knows.
    pub resume_offset: Option<Offset>,
    /// The offset of the newest witness that still matches, if that was looked for.
    pub matched_offset: Option<Offset>,
    /// Whether one look is enough. Watermarks need a second look: the brokers' answer may lag behind right after they
    /// elected a new leader.
    pub is_certain: bool,
}

/// Compares the offset that is read next with what the brokers hold.
pub fn find_gap(next_offset: Offset, sighting: &Sighting) -> Option<Gap> {
    let Watermarks { low, high } = sighting.watermarks;
    if let Some(change) = sighting.change {
        return Some(gap_of(change, next_offset, low, high));
    }
    (next_offset < low).then(|| Gap {
        kind: Kind::Retention,
        what: format!("records {next_offset}..{low} were deleted before they were read"),
        resume_offset: Some(low),
        matched_offset: None,
        is_certain: false,
    })
}

fn gap_of(change: Change, next_offset: Offset, low: Offset, high: Offset) -> Gap {
    let why = match change.replaced {
        Some((witness, other)) => format!(
            "the record at offset {} is of {}, but the record that was read there is of {}",
            witness.offset(),
            time(other),
            time(witness)
        ),
        None => {
            let read_until = change.read_until;
            format!("it ends at {high}, before offset {read_until}, up to which it was read")
        }
    };
    let is_certain = change.replaced.is_some();
    match change.newest_match {
        Some(witness) => Gap {
            kind: Kind::Truncated,
            what: format!(
                "the log was cut: {why}; it is the one that was read up to offset {}",
                witness.offset()
            ),
            // A rewind goes on where it was.
            resume_offset: Some(witness.offset().next().min(next_offset).max(low)),
            matched_offset: Some(witness.offset()),
            is_certain,
        },
        None => Gap {
            kind: Kind::Recreated,
            what: format!(
                "the log is not the one that was read: {why}, and no earlier record of it was found; it holds {low}..{high}"
            ),
            resume_offset: None,
            matched_offset: None,
            is_certain,
        },
    }
}

fn time(witness: Witness) -> String {
    match witness.position.timestamp_ms {
        None => "an unknown time".to_owned(),
        Some(timestamp_ms) => DateTime::<Utc>::from_timestamp_millis(timestamp_ms).map_or_else(
            || format!("{timestamp_ms} ms"),
            |time| time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        ),
    }
}

/// Records the incident and returns its text.
pub(super) fn record(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
    row: &OffsetRow,
    sighting: &Sighting,
    gap: &Gap,
) -> QueryResult<String> {
    let command = format!("ingestor offsets accept-gap --partition {partition}");
    let remedy = match gap.resume_offset {
        Some(offset) => format!("`{command}` accepts that and continues at offset {offset}"),
        None => format!(
            "if its records were never read, `{command} --new-topic` reads all of them; if it holds the records that were \
             read at other offsets, as in a mirrored cluster, `{command} --resume-at OFFSET` continues there"
        ),
    };
    let detail = format!("{}; {remedy}", gap.what);
    // After the other two kinds offsets stand for other records than before.
    let resume_incarnation = (gap.kind == Kind::Retention).then_some(row.incarnation);
    diesel::insert_into(offset_incidents::table)
        .values((
            offset_incidents::group_id.eq(&consumer.group_id),
            offset_incidents::topic.eq(&consumer.topic),
            offset_incidents::partition.eq(partition),
            offset_incidents::incarnation.eq(row.incarnation),
            offset_incidents::kind.eq(<&str>::from(gap.kind)),
            offset_incidents::next_offset.eq(row.next_offset),
            offset_incidents::low_watermark.eq(sighting.watermarks.low),
            offset_incidents::high_watermark.eq(sighting.watermarks.high),
            offset_incidents::detail.eq(&detail),
            offset_incidents::resume_offset.eq(gap.resume_offset),
            offset_incidents::resume_incarnation.eq(resume_incarnation),
            offset_incidents::matched_offset.eq(gap.matched_offset),
        ))
        .execute(connection)?;
    Ok(detail)
}

/// An incident that waits for an operator's decision.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = offset_incidents, check_for_backend(diesel::pg::Pg))]
pub struct Incident {
    /// Its number.
    pub id: i64,
    /// See [`Kind`].
    pub kind: String,
    /// The offset from which we wanted to continue.
    pub next_offset: Offset,
    /// The first offset that the broker held.
    pub low_watermark: Offset,
    /// The offset after the last one that the broker held.
    pub high_watermark: Offset,
    /// The incident as a text for people.
    pub detail: String,
    /// When it was found.
    pub detected_at: DateTime<Utc>,
    /// The offset from which reading continues once it is accepted; none if the operator has to say.
    pub resume_offset: Option<Offset>,
    /// The offset of the newest witness that still matched, after a cut.
    pub matched_offset: Option<Offset>,
}

/// Returns the open incident of a partition. There is at most one.
///
/// # Errors
/// Returns the database's error.
pub fn open_incident(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: Partition,
) -> QueryResult<Option<Incident>> {
    offset_incidents::table
        .filter(offset_incidents::group_id.eq(&consumer.group_id))
        .filter(offset_incidents::topic.eq(&consumer.topic))
        .filter(offset_incidents::partition.eq(partition))
        .filter(offset_incidents::resolved_at.is_null())
        .select(Incident::as_select())
        .first(connection)
        .optional()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::record::Position;

    fn witness(offset: i64) -> Witness {
        Witness {
            position: Position {
                offset: Offset(offset),
                timestamp_ms: Some(1_700_000_000_000 + offset),
            },
            payload_hash: offset,
        }
    }

    const INCARNATION: Incarnation = Incarnation(3);

    /// Witnesses at 3, 5, 7 and 9 of a partition that was read up to 10, and what stands at these offsets now.
    fn gap(low: i64, high: i64, look_up: impl Fn(i64) -> Option<Witness>) -> Option<Gap> {
        let witnesses = [3, 5, 7, 9].map(witness);
        let glimpse = Glimpse {
            incarnation: INCARNATION,
            next_offset: Offset(10),
            witnesses: (witnesses.into_iter())
                .fold(Witnesses::default(), |all, witness| all.with(Some(witness))),
        };
        let watermarks = Watermarks {
            low: Offset(low),
            high: Offset(high),
        };
        let look_up = |offset: Offset| Ok::<_, Infallible>(look_up(offset.0));
        let Ok(change) = Change::find(&glimpse, &[], watermarks, look_up);
        find_gap(
            glimpse.next_offset,
            &Sighting {
                incarnation: INCARNATION,
                watermarks,
                change,
            },
        )
    }

    fn kind_and_resume(gap: Option<Gap>) -> Option<(&'static str, Option<i64>, bool)> {
        gap.map(|gap| {
            let resume = gap.resume_offset.map(|offset| offset.0);
            (<&str>::from(gap.kind), resume, gap.is_certain)
        })
    }

    fn same(offset: i64) -> Option<Witness> {
        Some(witness(offset))
    }

    fn other(_: i64) -> Option<Witness> {
        Some(witness(0))
    }

    #[test]
    fn a_log_that_holds_what_was_read_is_no_gap_even_if_compaction_has_removed_records() {
        assert_eq!(gap(0, 10, same), None);
        assert_eq!(gap(10, 30, same), None);
        assert_eq!(
            gap(0, 30, |offset| same(offset).filter(|_| offset < 9)),
            None
        );
        assert_eq!(gap(0, 30, |_| None), None);
    }

    #[test]
    fn a_gap_tells_where_reading_continues() {
        let cut_at = |end| {
            move |offset| {
                if offset < end {
                    same(offset)
                } else {
                    other(offset)
                }
            }
        };
        for (gap, expected) in [
            (gap(12, 20, same), ("retention", Some(12), false)),
            (gap(0, 9, same), ("truncated", Some(8), false)),
            (gap(0, 6, same), ("truncated", Some(6), false)),
            (gap(5, 6, same), ("truncated", Some(6), false)),
            (gap(8, 9, same), ("recreated", None, false)),
            (gap(0, 0, same), ("recreated", None, false)),
            (gap(0, 30, cut_at(8)), ("truncated", Some(8), true)),
            (gap(0, 30, cut_at(4)), ("truncated", Some(4), true)),
            (gap(0, 30, other), ("recreated", None, true)),
            (gap(20, 30, other), ("retention", Some(20), false)),
        ] {
            assert_eq!(kind_and_resume(gap), Some(expected));
        }
    }

    #[test]
    fn a_gap_names_the_record_that_has_another_time() {
        let gap = gap(0, 30, other).unwrap();
        let why = "the record at offset 3 is of 2023-11-14T22:13:20.000Z, but the record that was read there is of \
                   2023-11-14T22:13:20.003Z";
        assert!(gap.what.contains(why), "{}", gap.what);
    }
}
