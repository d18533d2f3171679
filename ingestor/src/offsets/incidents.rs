//! Where the broker's offsets do not continue ours: how that is seen, and the row that says so.
//!
//! Nothing is skipped and nothing is read twice in silence: the partition waits until an operator accepts exactly the
//! range that is recorded here.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use rdkafka::error::KafkaResult;
use shared::db::schema::offset_incidents;

use super::{Consumer, OffsetRow};
use crate::batch::Position;
use crate::consumer::{Probe, Watermarks};

/// A record that was read. Where another one stands at its offset, the topic is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witness {
    /// Of which topic of that name.
    pub incarnation: i32,
    /// Its offset.
    pub offset: i64,
    /// Its timestamp in milliseconds since 1970.
    pub timestamp_ms: i64,
}

impl Witness {
    /// A record without a timestamp cannot be told from another one.
    pub fn new(incarnation: i32, record: Position) -> Option<Self> {
        Some(Self {
            incarnation,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms?,
        })
    }

    /// The timestamp of another record that stands at its offset. No record there, as after compaction or retention,
    /// proves nothing.
    ///
    /// # Errors
    /// Fails where no broker answers in time.
    pub fn replaced_by(
        &self,
        probe: &Probe,
        partition: i32,
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

/// How a partition's row looks before it is locked: brokers are not asked inside a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glimpse {
    /// Which topic of that name.
    pub incarnation: i32,
    /// Where to read on.
    pub next_offset: i64,
    /// The last record that was read.
    pub last_record: Option<Position>,
}

/// What the brokers show of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The topic of that name for which it holds.
    pub incarnation: i32,
    /// The offsets that the partition holds.
    pub watermarks: Watermarks,
    /// A record that we have read, and the timestamp of the other one in its place.
    pub replaced: Option<(Witness, i64)>,
    /// The oldest record that is there; looked up only where the partition ends before our offset.
    pub oldest: Option<Position>,
}

impl Sighting {
    /// Asks the brokers. `witness` is a record that this process has read, beside the last one of the row.
    ///
    /// # Errors
    /// Fails where no broker answers in time.
    pub fn take(
        probe: &Probe,
        partition: i32,
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

/// What does not fit, and where reading goes on once that is accepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gap {
    kind: &'static str,
    what: String,
    resume_offset: i64,
    resume_incarnation: i32,
    /// Whether it holds at the first sight. Watermarks do not: the brokers' answer may lag behind right after they
    /// elected a new leader.
    pub(super) certain: bool,
}

/// Compares a row with what the brokers show.
pub(super) fn find_gap(row: &OffsetRow, sighting: &Sighting) -> Option<Gap> {
    let Watermarks { low, high } = sighting.watermarks;
    let next_offset = row.next_offset;
    let made_anew = |why: String, certain| Gap {
        kind: "recreated",
        what: format!("the topic was made anew: {why}; its records {low}..{high} are to be read"),
        resume_offset: low,
        resume_incarnation: row.incarnation + 1,
        certain,
    };
    if let Some((witness, other)) = sighting.replaced {
        let why = format!(
            "at offset {} stands a record of {}, not the one of {} that was read",
            witness.offset,
            time(other),
            time(witness.timestamp_ms)
        );
        return Some(made_anew(why, true));
    }
    if next_offset < low {
        return Some(Gap {
            kind: "retention",
            what: format!("records {next_offset}..{low} were deleted before they were read"),
            resume_offset: low,
            resume_incarnation: row.incarnation,
            certain: false,
        });
    }
    if next_offset <= high {
        return None;
    }
    let ends = format!("it ends at {high}, before {next_offset}, to which it had been read");
    let newer = match (
        sighting.oldest.and_then(|record| record.timestamp_ms),
        row.last_timestamp,
    ) {
        (Some(oldest), Some(last)) => oldest > last,
        _ => false,
    };
    Some(if newer {
        made_anew(
            format!("{ends}, and its oldest record is newer than the last one read"),
            false,
        )
    } else if (low, high) == (0, 0) {
        made_anew(format!("{ends}, and is empty"), false)
    } else {
        Gap {
            kind: "truncated",
            what: format!(
                "the topic was truncated: {ends}; its records {low}..{high} count as read"
            ),
            resume_offset: high,
            // Offsets from there on stand for other records than before, and so do dead letters.
            resume_incarnation: row.incarnation + 1,
            certain: false,
        }
    })
}

fn time(timestamp_ms: i64) -> String {
    DateTime::<Utc>::from_timestamp_millis(timestamp_ms).map_or_else(
        || format!("{timestamp_ms} ms"),
        |time| time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
    )
}

/// Writes the incident down and gives its text.
pub(super) fn record(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: i32,
    row: &OffsetRow,
    watermarks: Watermarks,
    gap: &Gap,
) -> QueryResult<String> {
    let detail = format!(
        "{}; `ingestor offsets accept-gap --partition {partition}` accepts that and goes on at {}",
        gap.what, gap.resume_offset
    );
    diesel::insert_into(offset_incidents::table)
        .values((
            offset_incidents::group_id.eq(&consumer.group_id),
            offset_incidents::topic.eq(&consumer.topic),
            offset_incidents::partition.eq(partition),
            offset_incidents::incarnation.eq(row.incarnation),
            offset_incidents::kind.eq(gap.kind),
            offset_incidents::next_offset.eq(row.next_offset),
            offset_incidents::low_watermark.eq(watermarks.low),
            offset_incidents::high_watermark.eq(watermarks.high),
            offset_incidents::detail.eq(&detail),
            offset_incidents::resume_offset.eq(gap.resume_offset),
            offset_incidents::resume_incarnation.eq(gap.resume_incarnation),
        ))
        .execute(connection)?;
    Ok(detail)
}

/// An incident that waits for an operator.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = offset_incidents, check_for_backend(diesel::pg::Pg))]
pub struct Incident {
    /// Its number.
    pub id: i64,
    /// `retention`, `truncated` or `recreated`.
    pub kind: String,
    /// Where we wanted to go on.
    pub next_offset: i64,
    /// First offset that the broker held.
    pub low_watermark: i64,
    /// Offset behind the last one that it held.
    pub high_watermark: i64,
    /// For people.
    pub detail: String,
    /// When it was found.
    pub detected_at: DateTime<Utc>,
    /// Where reading goes on once it is accepted.
    pub resume_offset: i64,
    /// The partition's incarnation from then on.
    pub resume_incarnation: i32,
}

/// The incident of a partition that waits for an operator; there is one at most.
///
/// # Errors
/// Fails as the database does.
pub fn open_incident(
    connection: &mut PgConnection,
    consumer: &Consumer,
    partition: i32,
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

    fn row(next_offset: i64, last_timestamp: Option<i64>) -> OffsetRow {
        OffsetRow {
            next_offset,
            epoch: 1,
            owner: None,
            incarnation: 3,
            last_offset: Some(next_offset - 1),
            last_timestamp,
            consecutive_bad: 0,
            halted: false,
            replay_until: None,
        }
    }

    fn sighting(low: i64, high: i64, oldest_ms: Option<i64>) -> Sighting {
        Sighting {
            incarnation: 3,
            watermarks: Watermarks { low, high },
            replaced: None,
            oldest: oldest_ms.map(|timestamp_ms| Position {
                offset: low,
                timestamp_ms: Some(timestamp_ms),
            }),
        }
    }

    fn kind_and_resume(row: &OffsetRow, sighting: &Sighting) -> Option<(&'static str, i64, i32)> {
        find_gap(row, sighting).map(|gap| (gap.kind, gap.resume_offset, gap.resume_incarnation))
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
    fn a_gap_tells_where_reading_goes_on() {
        let row = row(10, Some(100));
        for (low, high, oldest_ms, expected) in [
            (12, 20, None, ("retention", 12, 3)),
            (0, 8, Some(50), ("truncated", 8, 4)),
            (0, 8, Some(100), ("truncated", 8, 4)),
            // Emptied by retention: what was there had been read.
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
            assert!(!find_gap(&row, &sighting).unwrap().certain);
        }
    }

    #[test]
    fn without_a_timestamp_of_ours_nothing_counts_as_newer() {
        let row = row(10, None);
        let expected = Some(("truncated", 8, 4));
        assert_eq!(kind_and_resume(&row, &sighting(0, 8, Some(101))), expected);
    }

    #[test]
    fn another_record_in_place_of_ours_is_a_new_topic_and_needs_no_second_look() {
        let witness = Witness {
            incarnation: 3,
            offset: 9,
            timestamp_ms: 100,
        };
        let sighting = Sighting {
            replaced: Some((witness, 1_700_000_000_000)),
            ..sighting(0, 30, None)
        };
        let gap = find_gap(&row(10, Some(100)), &sighting).unwrap();
        assert!(
            gap.certain
                && gap
                    .what
                    .contains("at offset 9 stands a record of 2023-11-14T22:13:20.000Z")
        );
        assert_eq!(
            (gap.kind, gap.resume_offset, gap.resume_incarnation),
            ("recreated", 0, 4)
        );
    }
}
