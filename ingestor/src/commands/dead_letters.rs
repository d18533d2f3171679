//! `ingestor dead-letters list|show|replay|drop|relay-again`.
//!
//! A daemon may run meanwhile. Each letter is decided on in one transaction; of two commands the first one decides.

mod print;

use std::io::Write;

use anyhow::{Context, bail};
use diesel::PgConnection;
use shared::order::Decoder;

use super::confirm::confirm;
use super::operator_connection;
use crate::config::{DeadLettersCommand, DecideArgs, Settings};
use crate::dead_letters::stored::{self, Filter, LetterState, StoredLetter};
use crate::record::Consumer;
use crate::replay::{self, DecideError, Outcome, Wish};

pub(super) async fn dead_letters(
    settings: Settings,
    command: DeadLettersCommand,
) -> anyhow::Result<()> {
    super::with_operator_checks(settings, move |settings| execute(settings, command)).await
}

fn execute(settings: &Settings, command: DeadLettersCommand) -> anyhow::Result<()> {
    let mut operator = Operator {
        connection: operator_connection(settings)?,
        consumer: settings.kafka.new_consumer(),
        decoder: settings.decoder,
    };
    match command {
        DeadLettersCommand::List {
            filter,
            state,
            relay_refused,
            limit,
            before,
            json,
        } => {
            let filter = Filter {
                state,
                is_relay_refused: relay_refused,
                ..filter
            };
            let connection = &mut operator.connection;
            let letters = stored::list(connection, &operator.consumer, &filter, before, limit)?;
            print::list(&letters, limit, json)
        }
        DeadLettersCommand::Show { id, payload, json } => operator.show(id, payload, json),
        DeadLettersCommand::Replay {
            which,
            revive_deleted: true,
        } => operator.decide(which, &REVIVE),
        DeadLettersCommand::Replay { which, .. } => operator.decide(which, &REPLAY),
        DeadLettersCommand::Drop(arguments) => operator.decide(arguments, &DROP),
        DeadLettersCommand::RelayAgain { ids, all } => operator.relay_again((!all).then_some(&ids)),
    }
}

type Decide = fn(&mut Operator, i64, Wish, bool) -> Result<Outcome, DecideError>;

/// A decision, and the words in which the user is asked for it.
struct Decision {
    verb: &'static str,
    consequence: &'static str,
    decide: Decide,
}

const REPLAY: Decision = Decision {
    verb: "replay",
    consequence: "their orders are stored unless the stored order is newer, or was deleted after the message was produced; a superseded \
                  letter that is given by its number is stored even if the stored order is newer",
    decide: |operator, id, wish, dry_run| operator.replay(id, wish, false, dry_run),
};

const REVIVE: Decision = Decision {
    verb: "replay",
    consequence: "their orders are stored unless the stored order is newer; orders that were deleted are stored again, but none \
                  that was erased",
    decide: |operator, id, wish, dry_run| operator.replay(id, wish, true, dry_run),
};

const DROP: Decision = Decision {
    verb: "drop",
    consequence: "they stay in the table, but cannot be replayed any more",
    decide: |operator, id, _, dry_run| {
        replay::drop_letter(&mut operator.connection, &operator.consumer, id, dry_run)
    },
};

struct Operator {
    connection: PgConnection,
    consumer: Consumer,
    decoder: Decoder,
}

impl Operator {
    fn replay(
        &mut self,
        id: i64,
        wish: Wish,
        revives_deleted: bool,
        dry_run: bool,
    ) -> Result<Outcome, DecideError> {
        let Self {
            connection,
            consumer,
            decoder,
        } = self;
        replay::replay(
            connection,
            consumer,
            *decoder,
            id,
            wish,
            revives_deleted,
            dry_run,
        )
    }

    fn show(&mut self, id: i64, payload_only: bool, as_json: bool) -> anyhow::Result<()> {
        let letter = self.find(id)?;
        if payload_only {
            if let Some(why) = letter.summary.blanking() {
                bail!("dead letter {id} has nothing to show: {why}");
            }
            let Some(payload) = &letter.payload else {
                bail!("dead letter {id} is a tombstone: its message has no value");
            };
            return std::io::stdout()
                .write_all(payload)
                .context("cannot write the payload");
        }
        print::letter(&letter, as_json)
    }

    fn find(&mut self, id: i64) -> anyhow::Result<StoredLetter> {
        stored::find(&mut self.connection, &self.consumer, id)?.with_context(|| {
            format!(
                "group {} has no dead letter {id} of topic {}; see `ingestor dead-letters list`",
                self.consumer.group_id, self.consumer.topic
            )
        })
    }

    fn relay_again(&mut self, ids_opt: Option<&Vec<i64>>) -> anyhow::Result<()> {
        let ids_opt = ids_opt.map(Vec::as_slice);
        let count = stored::relay_again(&mut self.connection, &self.consumer, ids_opt)?;
        println!("{count} letters wait for the relay again");
        if ids_opt.is_some_and(|ids| count < ids.len()) {
            bail!(
                "the other letters were not refused by KAFKA_DLQ_TOPIC, see `ingestor dead-letters list --relay-refused`"
            );
        }
        Ok(())
    }

    fn decide(&mut self, arguments: DecideArgs, decision: &Decision) -> anyhow::Result<()> {
        let DecideArgs {
            ids,
            all,
            filter,
            dry_run,
            yes,
        } = arguments;
        if !all && filter != Filter::default() {
            bail!(
                "filters need --all: they do not apply to letters that are given by their numbers"
            );
        }
        let wish = if all { Wish::Selected } else { Wish::Named };
        let ids = if all {
            let filter = Filter {
                state: Some(LetterState::New),
                ..filter
            };
            stored::ids(&mut self.connection, &self.consumer, &filter)?
        } else {
            ids
        };
        if ids.is_empty() {
            println!("no new dead letter matches");
            return Ok(());
        }
        if !dry_run {
            let question = format!(
                "{} {} dead letters of topic {} for group {}: {}",
                decision.verb,
                ids.len(),
                self.consumer.topic,
                self.consumer.group_id,
                decision.consequence
            );
            confirm(&question, yes)?;
        }
        let mut counts = Counts::default();
        for id in ids {
            match (decision.decide)(self, id, wish, dry_run) {
                Ok(outcome) => counts.add(id, &outcome),
                Err(error @ DecideError::NotNew(_)) => {
                    eprintln!("{id}: {error}");
                    counts.not_new += 1;
                }
                Err(error) => {
                    println!("{}", counts.summary(dry_run));
                    return Err(error).with_context(|| format!("dead letter {id}"));
                }
            }
        }
        println!("{}", counts.summary(dry_run));
        if counts.not_new + counts.kept > 0 {
            bail!("not all letters could be decided on");
        }
        Ok(())
    }
}

#[derive(Default)]
struct Counts {
    replayed: usize,
    superseded: usize,
    deleted: usize,
    dropped: usize,
    kept: usize,
    not_new: usize,
}

impl Counts {
    fn add(&mut self, id: i64, outcome: &Outcome) {
        let (count, text) = match outcome {
            Outcome::Replayed => (&mut self.replayed, "replayed"),
            Outcome::Superseded => (
                &mut self.superseded,
                "superseded: the stored order is newer",
            ),
            Outcome::Deleted => (
                &mut self.deleted,
                "superseded: its order was deleted after the message was produced; --revive-deleted would store it",
            ),
            Outcome::Dropped => (&mut self.dropped, "dropped"),
            Outcome::Kept(why) => {
                self.kept += 1;
                return eprintln!("{id}: kept: {why}");
            }
        };
        *count += 1;
        println!("{id}: {text}");
    }

    fn summary(&self, dry_run: bool) -> String {
        let note = if dry_run {
            " (nothing was changed)"
        } else {
            ""
        };
        format!(
            "{} replayed, {} superseded, {} stay deleted, {} dropped, {} kept, {} not new{note}",
            self.replayed, self.superseded, self.deleted, self.dropped, self.kept, self.not_new
        )
    }
}
