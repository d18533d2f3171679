//! Patterns that must not be in this repository, and that no linter knows.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Folders with files that are built or fetched.
const SKIPPED_FOLDERS: [&str; 4] = [".git", ".stack", "target", "node_modules"];

/// Sooner or later, text that is formatted into SQL contains somebody's input. Values must be bound; names are constants.
///
/// The patterns are compared with the source without its white space.
const SQL_BY_FORMAT: [&str; 6] = [
    "sql_query(format!",
    "sql_query(&format!",
    "sql(format!",
    "sql(&format!",
    "batch_execute(format!",
    "batch_execute(&format!",
];

/// Parents of home folders. Each is written in two parts, so that this line is not a finding.
const HOME_FOLDERS: [&str; 2] = [concat!("/ho", "me/"), concat!("/Us", "ers/")];

/// Returns the findings in all files under `root`, each with its file.
pub(super) fn findings(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    let own_root = machine_path(root);
    let mut findings = Vec::new();
    for file in files {
        // Files that are not text have no such patterns.
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        let name = file.strip_prefix(root).unwrap_or(&file);
        let is_rust = name.extension().is_some_and(|extension| extension == "rs");
        let is_this_file = name.ends_with("xtask/src/check/gates.rs");
        if is_rust && !is_this_file {
            findings.extend(
                sql_by_format(&text).map(|pattern| format!("{}: SQL by {pattern}", name.display())),
            );
        }
        if let Some(path) = foreign_path(&text, own_root.as_deref()) {
            findings.push(format!(
                "{}: a path of a developer's machine: {path}",
                name.display()
            ));
        }
    }
    Ok(findings)
}

/// Returns the root files of all crates, relative to `root`.
pub(super) fn crate_roots(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    let mut roots: Vec<_> = files
        .iter()
        .filter(|file| file.ends_with("src/lib.rs") || file.ends_with("src/main.rs"))
        .map(|file| {
            file.strip_prefix(root)
                .unwrap_or(file)
                .display()
                .to_string()
        })
        .collect();
    roots.sort();
    Ok(roots)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        let name = entry.file_name();
        let kind = entry
            .file_type()
            .with_context(|| format!("cannot look at {}", entry.path().display()))?;
        if kind.is_dir() {
            if !SKIPPED_FOLDERS.iter().any(|skipped| name == *skipped) {
                collect(&entry.path(), files)?;
            }
        } else if kind.is_file() && name != ".env" {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn sql_by_format(text: &str) -> impl Iterator<Item = &'static str> + use<> {
    let dense: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    SQL_BY_FORMAT
        .into_iter()
        .filter(move |pattern| dense.contains(pattern))
}

/// Returns the path of this clone. A short one such as `/app` may be in a file for good reasons, so it is not looked for.
fn machine_path(root: &Path) -> Option<String> {
    (root.components().count() > 2).then(|| root.display().to_string())
}

fn foreign_path<'a>(text: &'a str, own_root: Option<&str>) -> Option<&'a str> {
    HOME_FOLDERS
        .into_iter()
        .chain(own_root)
        .flat_map(|path| text.match_indices(path))
        .find(|(start, _)| {
            // The path must begin here: `https://host/home/` is not a finding.
            !text[..*start].ends_with(|before: char| {
                before.is_alphanumeric() || ['.', '/', '-', '_', '}', '$', '~'].contains(&before)
            })
        })
        .and_then(|(start, _)| text[start..].split_whitespace().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatted_sql_is_found_over_line_breaks() {
        let found: Vec<_> =
            sql_by_format("diesel::sql_query(\n    format!(\"DROP {name}\"))").collect();
        assert_eq!(found, ["sql_query(format!"]);
        assert_eq!(sql_by_format("sql_query(\"SELECT 1\")").count(), 0);
    }

    #[test]
    fn paths_of_people_are_found_and_addresses_are_not() {
        let home = [HOME_FOLDERS[0], "ann/orders"].concat();
        assert_eq!(
            foreign_path(&format!("see {home} there"), None),
            Some(home.as_str())
        );
        let address = ["https://host", HOME_FOLDERS[0], "page"].concat();
        assert_eq!(foreign_path(&address, None), None);
        assert_eq!(
            foreign_path("in /builds/x/orders/api", Some("/builds/x/orders")),
            Some("/builds/x/orders/api")
        );
        assert_eq!(machine_path(Path::new("/app")), None);
    }
}
