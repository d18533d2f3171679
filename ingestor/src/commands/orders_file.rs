//! Reads files of orders: one order per line, a JSON array of orders, or one order.

use std::fmt;
use std::fs::File;
use std::io::BufRead;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::value::RawValue;

/// Where an order stands in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// From 1.
    Line(usize),
    /// From 0.
    Element(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(formatter, "line {number}"),
            Self::Element(index) => write!(formatter, "element {index}"),
        }
    }
}

/// Whether the path stands for standard input.
pub(super) fn is_standard_input(file: &Path) -> bool {
    file == Path::new("-")
}

/// The file's name for messages.
pub(super) fn name_of(file: &Path) -> String {
    if is_standard_input(file) {
        "standard input".to_owned()
    } else {
        file.display().to_string()
    }
}

/// Opens a file.
///
/// # Errors
/// Returns an error that names the file if it cannot be opened or is a directory.
pub(super) fn open(file: &Path) -> anyhow::Result<File> {
    let opened = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    if opened.metadata()?.is_dir() {
        bail!("{} is a directory: name a file", file.display());
    }
    Ok(opened)
}

/// Calls `visit` for each order with its place and its bytes. Only one line, or one document, is in memory at a time.
///
/// # Errors
/// Returns an error if the input cannot be read, if it is an array that is not JSON, or if there is no order in it. Also
/// returns the error of `visit`.
pub(super) fn for_each_order(
    input: &mut dyn BufRead,
    mut visit: impl FnMut(Place, &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut line = Vec::new();
    let (mut number, mut is_empty) = (0, true);
    while input.read_until(b'\n', &mut line)? > 0 {
        number += 1;
        if is_empty && begins_a_document(&line) {
            input.read_to_end(&mut line)?;
            return visit_document(&line, number, visit);
        }
        if !line.trim_ascii().is_empty() {
            let end = line.strip_suffix(b"\n").unwrap_or(&line);
            visit(Place::Line(number), end)?;
            is_empty = false;
        }
        line.clear();
    }
    if is_empty {
        bail!("there is no order in the file");
    }
    Ok(())
}

/// Returns whether a line begins a document of several lines: an array, or an object that does not end in this line.
fn begins_a_document(line: &[u8]) -> bool {
    match line.trim_ascii() {
        [b'[', ..] => true,
        [b'{', ..] => serde_json::from_slice::<&RawValue>(line).is_err_and(|error| error.is_eof()),
        _ => false,
    }
}

fn visit_document(
    text: &[u8],
    number: usize,
    mut visit: impl FnMut(Place, &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if !text.trim_ascii_start().starts_with(b"[") {
        return visit(Place::Line(number), text);
    }
    let elements: Vec<&RawValue> = match serde_json::from_slice(text) {
        Ok(elements) => elements,
        Err(error) => bail!("it begins with [ but is not a JSON array: {error}"),
    };
    if elements.is_empty() {
        bail!("there is no order in the file");
    }
    for (index, element) in elements.into_iter().enumerate() {
        visit(Place::Element(index), element.get().as_bytes())?;
    }
    Ok(())
}
