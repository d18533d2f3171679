//! Incidents: how a mismatch between the broker's offsets and ours is found, and the row that records it.
//!
//! Nothing is skipped and nothing is read twice silently. The partition waits until an operator accepts exactly the
//! range that is recorded here.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use rdkafka::error::KafkaResult;
use shared::db::schema::offset_incidents;

use super::OffsetRow;
use crate::kafka::{Probe, Watermarks};
use crate::record::{Consumer, Incarnation, Offset, Partition, Position};

/// A record that was read. If another record has its offset now, the topic was recreated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witness {
    /// The partition's incarnation when it was read.
    pub incarnation: Incarnation,
    /// Its offset.
    pub offset: Offset,
    /// Its timestamp in milliseconds since 1970.
    pub timestamp_ms: i64,
}

impl Witness {
    /// Returns `None` for a record without a timestamp, which cannot be distinguished from another record.
    pub fn new(incarnation: Incarnation, record: Position) -> Option<Self> {
        Some(Self {
            incarnation,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms?,
        })
    }

    /// Returns the timestamp of another record that has its offset now. If there is no record at the offset, as after
    /// compaction or retention, that proves nothing.
    ///
    /// # Errors
    /// Returns an error if no broker answers in time.
    pub fn replaced_by(
        &self,
        probe: &Probe,
        partition: Partition,
        watermarks: Watermarks,
    ) -> KafkaResult<Option<i64>> {
        if !(watermarks.low..watermarks.high).contains(&self.offset) {
            return Ok(None);
        }
        let found = probe.first_record_from(partition, self.offset)?;
        Ok(found
            .filter(|record| record.offset == self.offset)
            .and_then(|record| record.timestamp_ms)
            .filter(|timestamp_ms| *timestamp_ms != self.timestamp_ms))
    }
}

/// A partition's row before it is locked. The brokers are asked between the two looks, because no broker is asked inside
/// a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glimpse {
    /// The partition's incarnation.
    pub incarnation: Incarnation,
    /// The offset to continue from.
    pub next_offset: Offset,
    /// The last record that was read.
    pub last_record: Option<Position>,
}

/// What the brokers hold of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The incarnation that the row had when the brokers were asked.
    pub incarnation: Incarnation,
    /// The offsets that the partition holds.
    pub watermarks: Watermarks,
    /// A record that was read, and the timestamp of the other record that has its offset now.
    pub replaced: Option<(Witness, i64)>,
    /// The oldest record of the partition. It is looked up only if the partition ends before our offset.
    pub oldest: Option<Position>,
}

impl Sighting {
    /// Asks the brokers. `witness` is a record that this process has read, in addition to the last record of the row.
    ///
    /// # Errors
    /// Returns an error if no broker answers in time.
    pub fn take(
        probe: &Probe,
        partition: Partition,
        glimpse: &Glimpse,
        witness: Option<Witness>,
    ) -> KafkaResult<Self> {
        let watermarks = probe.watermarks(partition)?;
        let last = glimpse
            .last_record
            .and_then(|record| Witness::new(glimpse.incarnation, record));
        let earlier = witness
            .filter(|witness| witness.incarnation == glimpse.incarnation && Some(*witness) != last);
        let mut replaced = None;
        for witness in last.into_iter().chain(earlier) {
            if let Some(other) = witness.replaced_by(probe, partition, watermarks)? {
                replaced = Some((witness, other));
                break;
            }
        }
        let oldest = if replaced.is_none() && glimpse.next_offset > watermarks.high {
            probe.first_record_from(partition, watermarks.low)?
        } else {
            None
        };
        Ok(Self {
            incarnation: glimpse.incarnation,
            watermarks,
            replaced,
            oldest,
        })
    }
}

/// The kinds of incidents, in the table in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
enum Kind {
    /// Retention deleted records before they were read.
    Retention,
    /// The log was cut: it ends before our offset.
    Truncated,
    /// The topic was deleted and created again.
    Recreated,
}

/// What does not match, and where reading continues once an operator accepts that.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gap {
    kind: Kind,
    what: String,
    resume_offset: Offset,
    resume_incarnation: Incarnation,
    /// Whether one look is enough. Watermarks need a second look: the brokers' answer may lag behind right after they
    /// elected a new leader.
    pub(super) is_certain: bool,
}

/// Compares a row with what the brokers hold.
pub(super) fn find_gap(row: &OffsetRow, sighting: &Sighting) -> Option<Gap> {
    let Watermarks { low, high } = sighting.watermarks;
    let next_offset = row.next_offset;
    let recreated = |why: String, is_certain| Gap {
        kind: Kind::Recreated,
        what: format!("the topic was recreated: {why}; its records {low}..{high} are to be read"),
        resume_offset: low,
        resume_incarnation: row.incarnation.next(),
        is_certain,
    };
    if let Some((witness, other)) = sighting.replaced {
        let why = format!(
            "the record at offset {} is of {}, but the record that was read there is of {}",
            witness.offset,
            time(other),
            time(witness.timestamp_ms)
        );
        return Some(recreated(why, true));
    }
    if next_offset < low {
        return Some(Gap {
            kind: Kind::Retention,
            what: format!("records {next_offset}..{low} were deleted before they were read"),
            resume_offset: low,
            resume_incarnation: row.incarnation,
            is_certain: false,
        });
    }
    if next_offset <= high {
        return None;
    }
    let ends = format!("it ends at {high}, before offset {next_offset}, up to which it was read");
    let is_newer = match (
        sighting.oldest.and_then(|record| record.timestamp_ms),
        row.last_timestamp,
    ) {
        (Some(oldest), Some(last)) => oldest > last,
        _ => false,
    };
    Some(if is_newer {
        let why = format!("{ends}, and its oldest record is newer than the last one read");
        recreated(why, false)
    } else if (low, high) == (Offset(0), Offset(0)) {
        recreated(format!("{ends}, and is empty"), false)
    } else {
        Gap {
            kind: Kind::Truncated,
            what: format!(
                "the topic was truncated: {ends}; its records {low}..{high} count as read"
            ),
            resume_offset: high,
            // From there on, offsets and dead letters belong to other records than before.
            resume_incarnation: row.incarnation.next(),
            is_certain: false,
        }
    })
}

fn time(timestamp_ms: i64) -> String {
    DateTime::<Utc>::from_timestamp_millis(timestamp_ms).map_or_else(
        || format!("{timestamp_ms} ms"),
        |time| time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
    )
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
    let detail = format!(
        "{}; `ingestor offsets accept-gap --partition {partition}` accepts that and continues at offset {}",
        gap.what, gap.resume_offset
    );
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
            offset_incidents::resume_incarnation.eq(gap.resume_incarnation),
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
    /// `retention`, `truncated` or `recreated`.
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
    /// The offset from which reading continues once it is accepted.
    pub resume_offset: Offset,
    /// The partition's incarnation from then on.
    pub resume_incarnation: Incarnation,
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
    use super::*;
    use crate::record::Epoch;

    fn row(next_offset: i64, last_timestamp: Option<i64>) -> OffsetRow {
        OffsetRow {
            partition: Partition(0),
            next_offset: Offset(next_offset),
            epoch: Epoch(1),
            owner: None,
            incarnation: Incarnation(3),
            last_offset: Some(Offset(next_offset - 1)),
            last_timestamp,
            consecutive_bad: 0,
            halted: false,
            replay_until: None,
            updated_at: Utc::now(),
        }
    }

    fn sighting(low: i64, high: i64, oldest_ms: Option<i64>) -> Sighting {
        Sighting {
            incarnation: Incarnation(3),
            watermarks: Watermarks {
                low: Offset(low),
                high: Offset(high),
            },
            replaced: None,
            oldest: oldest_ms.map(|timestamp_ms| Position {
                offset: Offset(low),
                timestamp_ms: Some(timestamp_ms),
            }),
        }
    }

    fn kind_and_resume(row: &OffsetRow, sighting: &Sighting) -> Option<(&'static str, i64, i32)> {
        find_gap(row, sighting).map(|gap| {
            let resume = (gap.resume_offset.0, gap.resume_incarnation.0);
            (<&str>::from(gap.kind), resume.0, resume.1)
        })
    }

    #[test]
    fn an_offset_that_the_broker_holds_or_that_comes_next_is_no_gap() {
        for next_offset in [5, 7, 10] {
            let row = row(next_offset, Some(100));
            assert_eq!(
                find_gap(&row, &sighting(5, 10, None)),
                None,
                "{next_offset}"
            );
        }
    }

    #[test]
    fn a_gap_tells_where_reading_continues() {
        let row = row(10, Some(100));
        for (low, high, oldest_ms, expected) in [
            (12, 20, None, ("retention", 12, 3)),
            (0, 8, Some(50), ("truncated", 8, 4)),
            (0, 8, Some(100), ("truncated", 8, 4)),
            // Retention emptied the partition after its records had been read.
            (8, 8, None, ("truncated", 8, 4)),
            (0, 8, Some(101), ("recreated", 0, 4)),
            (2, 8, Some(101), ("recreated", 2, 4)),
            (0, 0, None, ("recreated", 0, 4)),
        ] {
            let sighting = sighting(low, high, oldest_ms);
            assert_eq!(
                kind_and_resume(&row, &sighting),
                Some(expected),
                "{sighting:?}"
            );
            assert!(!find_gap(&row, &sighting).unwrap().is_certain);
        }
    }

    #[test]
    fn without_a_timestamp_of_our_last_record_nothing_counts_as_newer() {
        let row = row(10, None);
        let expected = Some(("truncated", 8, 4));
        assert_eq!(kind_and_resume(&row, &sighting(0, 8, Some(101))), expected);
    }

    #[test]
    fn another_record_at_an_offset_that_was_read_means_a_recreated_topic_at_the_first_look() {
        let witness = Witness {
            incarnation: Incarnation(3),
            offset: Offset(9),
            timestamp_ms: 100,
        };
        let sighting = Sighting {
            replaced: Some((witness, 1_700_000_000_000)),
            ..sighting(0, 30, None)
        };
        let row = row(10, Some(100));
        let gap = find_gap(&row, &sighting).unwrap();
        let why = "the record at offset 9 is of 2023-11-14T22:13:20.000Z";
        assert!(gap.is_certain && gap.what.contains(why));
        assert_eq!(kind_and_resume(&row, &sighting), Some(("recreated", 0, 4)));
    }
}
