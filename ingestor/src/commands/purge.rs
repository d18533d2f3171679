//! `ingestor purge`.

use chrono::Utc;
use shared::throttle::Throttle;

use super::confirm::confirm;
use super::operator_connection;
use crate::config::{PurgeArgs, Settings};
use crate::purge::{purge_letters, purge_orders};

pub(super) async fn purge(settings: Settings, arguments: PurgeArgs) -> anyhow::Result<()> {
    super::with_operator_checks(settings, move |settings| execute(settings, arguments)).await
}

fn execute(settings: &Settings, arguments: PurgeArgs) -> anyhow::Result<()> {
    let PurgeArgs {
        older_than,
        orders,
        dead_letters,
        dry_run,
        yes,
    } = arguments;
    let mut connection = operator_connection(settings)?;
    let cutoff = older_than.before(Utc::now());
    let what = match (orders, dead_letters) {
        (true, _) => "orders",
        (_, true) => "dead letters",
        _ => "orders and dead letters",
    };
    if !dry_run {
        let question = format!(
            "{what} that are older than {older_than} are removed for ever; --dry-run counts them"
        );
        confirm(&question, yes)?;
    }
    let mut reports = Throttle::for_reports();
    let mut tell = |what: &str, removed: usize| {
        if reports.is_due() {
            eprintln!("{removed} {what} so far");
        }
    };
    let note = if dry_run {
        "would be removed (nothing was changed)"
    } else {
        "removed"
    };
    if !dead_letters {
        let progress = |removed| tell("orders", removed);
        let removed = purge_orders(&mut connection, cutoff, dry_run, progress)?;
        println!("{removed} orders older than {older_than} {note}");
    }
    if !orders {
        let progress = |removed| tell("dead letters", removed);
        let removed = purge_letters(&mut connection, cutoff, dry_run, progress)?;
        println!("{removed} dead letters older than {older_than} {note}");
    }
    Ok(())
}
