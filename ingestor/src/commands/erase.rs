//! `ingestor erase`.

use anyhow::bail;
use shared::throttle::Throttle;

use super::confirm::confirm;
use super::operator_connection;
use crate::config::{EraseArgs, Settings, Whose};
use crate::erase::{self, Extent, Subject};

/// What the command cannot reach.
const ELSEWHERE: &str = "not reached by this command: the messages in Kafka (the topic and KAFKA_DLQ_TOPIC), PostgreSQL's archived log, \
                         backups, and the logs of the programs";

pub(super) async fn erase(settings: Settings, arguments: EraseArgs) -> anyhow::Result<()> {
    super::with_operator_checks(settings, move |settings| execute(settings, arguments)).await
}

fn execute(settings: &Settings, arguments: EraseArgs) -> anyhow::Result<()> {
    let EraseArgs {
        whose: Whose { customer, orders },
        dry_run,
        yes,
    } = arguments;
    let subject = customer.map_or(Subject::Orders(orders), Subject::Customer);
    let mut connection = operator_connection(settings)?;
    let found = erase::measure(&mut connection, &subject)?;
    if dry_run {
        println!(
            "{} would be erased (nothing was changed)",
            named(&subject, found)
        );
        return Ok(());
    }
    let question = format!(
        "{} are erased for ever; later messages are stored only if they are produced from now on",
        named(&subject, found)
    );
    confirm(&question, yes)?;
    let mut reports = Throttle::for_reports();
    let erased = erase::erase(&mut connection, &subject, |extent| {
        if reports.is_due() {
            eprintln!("{} are erased", counted(extent));
        }
    })?;
    println!("erased: {}\n{ELSEWHERE}", named(&subject, erased));
    if !erase::forget_statistics(&mut connection)? {
        bail!(
            "PostgreSQL's statistics may still quote what was erased, and only the owner of the tables may renew them: run \
             `ANALYZE orders, dead_letters` as the owner"
        );
    }
    Ok(())
}

fn named(subject: &Subject, extent: Extent) -> String {
    let whose = match subject {
        Subject::Customer(id) => format!("customer {id}"),
        Subject::Orders(uids) => format!("{} given orders", uids.len()),
    };
    format!("{} of {whose}", counted(extent))
}

fn counted(extent: Extent) -> String {
    format!(
        "{} orders and the bytes of {} dead letters",
        extent.orders, extent.letters
    )
}
