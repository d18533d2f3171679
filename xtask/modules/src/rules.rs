//! Checks that the modules of each crate form no circle, and that the table in its root names who uses whom.
//!
//! A module and its children are one room: a child may use its parent and the other way round. The rooms of one parent
//! must not use each other in a circle, at any level of the tree. Nobody below the root may use an item that the root
//! itself defines. The root lists its modules bottom-up, in a table of its documentation:
//!
//! ```text
//! | module | what it is for | uses |
//! |---|---|---|
//! | [`events`] | the contract between writers and caches | |
//! | [`cache`] | the cache and what keeps it true | [`events`] |
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Crate, ModulePath};

/// Which rooms of one parent use which others, each with one place that shows it.
type Uses = BTreeMap<String, BTreeMap<String, String>>;

/// Findings in a crate, as `file: what is wrong and what to do`.
pub(crate) fn findings(source: &Crate) -> Vec<String> {
    let mut findings = Vec::new();
    let mut levels: BTreeMap<ModulePath, Uses> = BTreeMap::new();
    for import in source.imports() {
        let (from, to) = (&import.from, &import.to);
        if to.is_empty() && !from.is_empty() {
            findings.push(format!(
                "{}: uses `{}` of the crate's root: move it into the lowest module that needs it",
                import.file, import.name
            ));
        }
        let shared = from.iter().zip(to).take_while(|(a, b)| a == b).count();
        if let (Some(user), Some(used)) = (from.get(shared), to.get(shared)) {
            levels
                .entry(from[..shared].to_vec())
                .or_default()
                .entry(user.clone())
                .or_default()
                .entry(used.clone())
                .or_insert_with(|| format!("{} uses `{}`", import.file, import.name));
        }
    }
    for uses in levels.values() {
        if let Some(circle) = circle(uses) {
            findings.push(format!(
                "modules form a circle; move what one takes from the other below both: {}",
                circle.join("; ")
            ));
        }
    }
    let root_uses = levels.remove(&Vec::new()).unwrap_or_default();
    findings.extend(table_findings(source, &root_uses));
    findings
}

/// The places that tie a circle, if there is one.
fn circle(uses: &Uses) -> Option<Vec<String>> {
    let mut finished = BTreeSet::new();
    uses.keys()
        .find_map(|start| circle_from(start, uses, &mut Vec::new(), &mut finished))
}

fn circle_from<'a>(
    room: &'a str,
    uses: &'a Uses,
    path: &mut Vec<&'a str>,
    finished: &mut BTreeSet<&'a str>,
) -> Option<Vec<String>> {
    if let Some(start) = path.iter().position(|visited| *visited == room) {
        let circle = &path[start..];
        let next = circle.iter().cycle().skip(1);
        return Some(
            circle
                .iter()
                .zip(next)
                .map(|(user, used)| uses[*user][*used].clone())
                .collect(),
        );
    }
    if finished.contains(room) {
        return None;
    }
    path.push(room);
    let found = uses
        .get(room)
        .into_iter()
        .flat_map(BTreeMap::keys)
        .find_map(|used| circle_from(used, uses, path, finished));
    path.pop();
    finished.insert(room);
    found
}

fn table_findings(source: &Crate, uses: &Uses) -> Vec<String> {
    let modules = source.top_level();
    if modules.len() < 2 {
        return Vec::new();
    }
    let file = source.root_file();
    let mut findings = Vec::new();
    let mut above: Vec<String> = Vec::new();
    for (module, listed) in table(source.root_documentation()) {
        let used: BTreeSet<_> = uses
            .get(&module)
            .map(|used| used.keys().cloned().collect())
            .unwrap_or_default();
        let unlisted: Vec<_> = used.difference(&listed).cloned().collect();
        let unused: Vec<_> = listed.difference(&used).cloned().collect();
        let not_above: Vec<_> = used
            .iter()
            .filter(|used| !above.contains(used))
            .cloned()
            .collect();
        for (modules, what) in [
            (unlisted, "uses, but its row does not list"),
            (unused, "does not use, but its row lists"),
            (not_above, "stands above a module that it uses, which is"),
        ] {
            if !modules.is_empty() {
                findings.push(format!(
                    "{file}: table of modules: `{module}` {what}: {}",
                    modules.join(", ")
                ));
            }
        }
        above.push(module);
    }
    for module in modules {
        let rows = above.iter().filter(|listed| **listed == module).count();
        if rows != 1 {
            findings.push(format!(
                "{file}: table of modules: `{module}` has {rows} rows, it must have one"
            ));
        }
    }
    findings
}

/// The rows of the table: a module, and the modules that it is said to use.
fn table(documentation: &str) -> Vec<(String, BTreeSet<String>)> {
    documentation
        .lines()
        .filter_map(|line| line.trim().strip_prefix("| [`"))
        .filter_map(|row| {
            let (module, rest) = row.split_once("`]")?;
            let (_, uses) = rest.trim_end().strip_suffix('|')?.rsplit_once('|')?;
            let used = uses
                .split("[`")
                .skip(1)
                .filter_map(|used| used.split_once("`]"))
                .map(|(used, _)| used.to_owned())
                .collect();
            Some((module.to_owned(), used))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TABLE: &str = "//! | module | what it is for | uses |\n//! |---|---|---|\n";

    /// The findings in a crate of these files.
    fn findings_in(files: &[(&str, &str)]) -> Vec<String> {
        let read = |path: &Path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path)?;
            Some(file.1.to_owned())
        };
        findings(&Crate::read(Path::new("lib.rs"), &read).unwrap())
    }

    /// A root with the modules `high` and `low`, in which `high` uses `low`.
    fn root() -> String {
        format!(
            "{TABLE}//! | [`low`] | the ground | |\n//! | [`high`] | the roof | [`low`] |\npub mod high;\npub mod low;\n"
        )
    }

    #[test]
    fn modules_that_use_each_other_one_way_are_fine() {
        let findings = findings_in(&[
            ("lib.rs", &root()),
            ("high.rs", "use crate::low::Stone;\nmod tower;\n"),
            // A child and its parent are one room.
            ("high/tower.rs", "use super::Stone;\n"),
            (
                "low.rs",
                "pub struct Stone;\n#[cfg(test)]\nmod tests { use crate::high; }\n",
            ),
        ]);
        assert_eq!(findings, [""; 0]);
    }

    #[test]
    fn a_circle_is_found_however_it_is_tied() {
        for back in [
            "use crate::high::Roof;\n",
            "use super::high;\n",
            "fn f(_: crate::high::Roof) {}\n",
            "fn f() { println!(\"{}\", crate::high::HEIGHT); }\n",
            "mod deep { use super::super::high::Roof; }\n",
            // By a name that the root passes on.
            "use crate::Roof;\n",
        ] {
            let root = root() + "pub use high::Roof;\n";
            let findings = findings_in(&[
                ("lib.rs", &root),
                ("high.rs", "use crate::low;\npub struct Roof;\n"),
                ("low.rs", back),
            ]);
            assert!(
                findings
                    .iter()
                    .any(|finding| finding.contains("circle") && finding.contains("low.rs")),
                "{back}: {findings:?}"
            );
        }
    }

    #[test]
    fn a_circle_of_children_is_found() {
        let findings = findings_in(&[
            ("lib.rs", "mod house;\n"),
            ("house.rs", "mod floor;\nmod stairs;\n"),
            ("house/floor.rs", "use super::stairs::Step;\n"),
            ("house/stairs.rs", "use crate::house::floor::Plank;\n"),
        ]);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains("floor.rs") && findings[0].contains("stairs.rs"));
    }

    #[test]
    fn nobody_uses_what_the_root_defines() {
        let findings = findings_in(&[
            ("lib.rs", "mod house;\npub fn run() {}\n"),
            ("house.rs", "fn f() { crate::run(); }\n"),
        ]);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains("`run` of the crate's root"));
    }

    #[test]
    fn a_table_that_is_wrong_is_found() {
        let used = "use crate::low;\n";
        for (rows, high, finding) in [
            ("| [`low`] | | |\n", used, "`high` has 0 rows"),
            (
                "| [`low`] | | |\n| [`high`] | | |\n",
                used,
                "`high` uses, but its row does not list: low",
            ),
            (
                "| [`low`] | | |\n| [`high`] | | [`low`] |\n",
                "",
                "`high` does not use, but its row lists: low",
            ),
            (
                "| [`high`] | | [`low`] |\n| [`low`] | | |\n",
                used,
                "`high` stands above a module that it uses, which is: low",
            ),
        ] {
            let rows = rows.replace("| [", "//! | [");
            let root = format!("{TABLE}{rows}mod high;\nmod low;\n");
            let findings = findings_in(&[("lib.rs", &root), ("high.rs", high), ("low.rs", "")]);
            assert!(
                findings.iter().any(|found| found.contains(finding)),
                "{finding}: {findings:?}"
            );
        }
    }
}
