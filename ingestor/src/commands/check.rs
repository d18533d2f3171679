//! `ingestor check`: the verdict of ingestion on the orders of a file, without Kafka and without PostgreSQL.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, bail};
use shared::order::{Decoder, Fault, OrderError};

use super::orders_file::{self, Place};

/// Prints a line for each order of the file (`-` is standard input), and then a summary.
///
/// The file has one order per line, or is a JSON array of orders, or is one order.
///
/// # Errors
/// Returns an error if the file cannot be read, if it is an array that is not JSON, or if any order is refused.
pub(super) fn check(decoder: Decoder, file: &Path) -> anyhow::Result<()> {
    let mut input: Box<dyn BufRead> = if orders_file::is_standard_input(file) {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(orders_file::open(file)?))
    };
    let mut report = Report::new(decoder, BufWriter::new(io::stdout().lock()));
    check_all(&mut *input, &mut report).with_context(|| orders_file::name_of(file))?;
    report.finish()
}

fn check_all(input: &mut dyn BufRead, report: &mut Report<impl Write>) -> anyhow::Result<()> {
    orders_file::for_each_order(input, |place, bytes| report.add(place, bytes))
}

/// Prints verdicts and counts them.
struct Report<W> {
    decoder: Decoder,
    output: W,
    orders: u64,
    refused: u64,
    /// How many orders break each rule.
    rules: BTreeMap<String, u64>,
}

impl<W: Write> Report<W> {
    fn new(decoder: Decoder, output: W) -> Self {
        Self {
            decoder,
            output,
            orders: 0,
            refused: 0,
            rules: BTreeMap::new(),
        }
    }

    fn add(&mut self, place: Place, bytes: &[u8]) -> anyhow::Result<()> {
        self.orders += 1;
        match self.decoder.decode(bytes) {
            Ok(order) => writeln!(self.output, "{place}: accepted: {}", order.order_uid)?,
            Err(error) => {
                self.refused += 1;
                for rule in broken_rules(&error) {
                    *self.rules.entry(rule).or_default() += 1;
                }
                writeln!(self.output, "{place}: refused: {}: {error}", error.reason())?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        let (orders, refused) = (self.orders, self.refused);
        writeln!(
            self.output,
            "orders: {orders}, accepted: {}, refused: {refused}",
            orders - refused
        )?;
        for (rule, count) in &self.rules {
            writeln!(self.output, "{count} refused: {rule}")?;
        }
        self.output.flush()?;
        if refused > 0 {
            bail!("{refused} of {orders} orders are refused");
        }
        Ok(())
    }
}

/// The rules that an order breaks, without the numbers of its items, so that they can be counted.
fn broken_rules(error: &OrderError) -> Vec<String> {
    let OrderError::Invalid(faults) = error else {
        return vec![error.to_string()];
    };
    let mut rules: Vec<_> = faults
        .iter()
        .map(|fault| {
            let parts = fault.pointer.split('/').map(|part| {
                let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
                if is_number { "*" } else { part }
            });
            let pointer = parts.collect::<Vec<_>>().join("/");
            let detail = fault.detail.clone();
            Fault { pointer, detail }.to_string()
        })
        .collect();
    rules.sort();
    rules.dedup();
    rules
}

#[cfg(test)]
mod tests {
    use shared::testing::model_json;

    use super::*;

    /// What is printed for a file, and the error at its end.
    fn check_text(text: &str) -> (Vec<String>, Option<String>) {
        let mut report = Report::new(Decoder::default(), Vec::new());
        let read = check_all(&mut text.as_bytes(), &mut report);
        let error = read.and_then(|()| report.finish()).err();
        let printed = String::from_utf8(report.output).unwrap();
        (
            printed.lines().map(str::to_owned).collect(),
            error.map(|error| error.to_string()),
        )
    }

    fn one_line() -> String {
        let model: serde_json::Value = serde_json::from_str(model_json()).unwrap();
        model.to_string()
    }

    #[test]
    fn lines_arrays_and_one_pretty_order_are_read() {
        let line = one_line();
        for (text, orders) in [
            (format!("{line}\n\n{line}\r\n"), 2),
            (line.clone(), 1),
            (format!("[{line},\n{line}, {line}]\n"), 3),
            (model_json().to_owned(), 1),
        ] {
            let (printed, error) = check_text(&text);
            let summary = format!("orders: {orders}, accepted: {orders}, refused: 0");
            assert_eq!((printed.last(), error), (Some(&summary), None), "{text}");
            assert_eq!(printed.len(), orders + 1);
        }
    }

    #[test]
    fn broken_rules_are_counted_and_fail_the_check() {
        let line = one_line();
        let bad = line.replace("\"price\":453", "\"price\":-453");
        let (printed, error) = check_text(&format!("{bad}\n{line}\nnope\n{bad}\n[]\n"));
        assert_eq!(error.unwrap(), "4 of 5 orders are refused");
        assert_eq!(
            printed,
            [
                "line 1: refused: invalid_order: /items/0/price: must be an integer in 0..=9007199254740991, not negative",
                "line 2: accepted: b563feb7b2b84b6test",
                "line 3: refused: not_json: expected ident at line 1 column 2",
                "line 4: refused: invalid_order: /items/0/price: must be an integer in 0..=9007199254740991, not negative",
                "line 5: refused: invalid_order: the document: is an array: send one order per message",
                "orders: 5, accepted: 1, refused: 4",
                "2 refused: /items/*/price: must be an integer in 0..=9007199254740991, not negative",
                "1 refused: expected ident at line 1 column 2",
                "1 refused: the document: is an array: send one order per message",
            ]
        );
    }

    #[test]
    fn a_file_without_orders_or_with_a_broken_array_is_an_error() {
        assert_eq!(check_text("\n").1.unwrap(), "there is no order in the file");
        let error = check_text("[{}, {\n").1.unwrap();
        assert!(error.contains("not a JSON array"), "{error}");
        // An object that never ends is one order.
        let (printed, _) = check_text("{\n\"order_uid\": 1,\n");
        assert_eq!(printed[1], "orders: 1, accepted: 0, refused: 1");
    }
}
