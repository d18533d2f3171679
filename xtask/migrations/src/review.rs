//! All migrations, one after the other: what each statement breaks, and what its author answers for.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use squawk_syntax::ast::{self, AstNode, Stmt};
use squawk_syntax::{SourceFile, SyntaxKind, SyntaxNode};

use crate::files::Migration;
use crate::rules::Rule;
use crate::statements::{Effect, changed_rows, effects};
use crate::syntax::{comments, has, line_of};

/// Returns the findings in migrations, which must be in the order in which they run.
///
/// Nothing that a migration does to a table of its own is a finding, because nobody else can see this table yet.
pub(crate) fn findings(migrations: &[Migration]) -> Vec<String> {
    let mut promises = Promises::default();
    migrations
        .iter()
        .flat_map(|migration| Review::of(migration, &mut promises))
        .collect()
}

/// The columns of which constraints say that they are never null.
#[derive(Debug, Default)]
struct Promises {
    /// The column for each table and constraint. Old rows may break the promise.
    made: BTreeMap<(String, String), String>,
    /// Table and column. PostgreSQL has read all rows.
    kept: BTreeSet<(String, String)>,
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Broken {
    line: usize,
    rule: Rule,
    table: Option<String>,
}

impl Broken {
    /// How a comment names it.
    fn name(&self) -> String {
        match &self.table {
            Some(table) => format!("{} on {table}", self.rule.code()),
            None => self.rule.code().to_owned(),
        }
    }
}

/// What is known about a migration while its statements are looked at.
#[derive(Debug)]
struct Review<'a> {
    migration: &'a Migration,
    promises: &'a mut Promises,
    /// The tables that it makes.
    own_tables: BTreeSet<String>,
    /// The tables of others that it locks, in this order, each with the line.
    locked: Vec<(String, usize)>,
    /// The tables of others that it reads as a whole, and the lines.
    validated: Vec<(String, usize)>,
    broken: Vec<Broken>,
    /// It is one DO block that commits between its statements.
    is_in_batches: bool,
}

impl<'a> Review<'a> {
    fn of(migration: &'a Migration, promises: &'a mut Promises) -> Vec<String> {
        let parse = SourceFile::parse(&migration.up);
        let file = parse.tree();
        let mut review = Self {
            migration,
            promises,
            own_tables: BTreeSet::new(),
            locked: Vec::new(),
            validated: Vec::new(),
            broken: Vec::new(),
            is_in_batches: false,
        };
        for error in parse.errors() {
            let start = usize::from(error.range().start());
            let line = 1 + migration.up[..start].matches('\n').count();
            review.breaks(Rule::Syntax, None, line);
        }
        let statements: Vec<Stmt> = file.stmts().collect();
        review.look_at_transaction(&statements);
        for statement in &statements {
            let line = line_of(&migration.up, statement.syntax());
            match statement {
                Stmt::Do(block) => review.look_at_block(block, line),
                statement => review.apply(effects(statement), line),
            }
        }
        review.look_at_locks();
        review.report(&comments(&file))
    }

    fn breaks(&mut self, rule: Rule, table: Option<String>, line: usize) {
        self.broken.push(Broken { line, rule, table });
    }

    /// Outside of a transaction there may be one statement, which must not leave anything half done.
    fn look_at_transaction(&mut self, statements: &[Stmt]) {
        let needs_none = |statement: &Stmt| match statement {
            Stmt::CreateIndex(index) => index.concurrently_token().is_some(),
            Stmt::DropIndex(index) => index.concurrently_token().is_some(),
            Stmt::Do(block) => block
                .plpgsql()
                .is_some_and(|body| has(&body.syntax(), SyntaxKind::PLPGSQL_COMMIT_STMT)),
            _ => false,
        };
        let is_right = if self.migration.runs_in_transaction {
            !statements.iter().any(needs_none)
        } else {
            matches!(statements, [only] if needs_none(only))
        };
        if !is_right {
            self.breaks(Rule::OutsideTransaction, None, 1);
        }
        let is_block = matches!(statements, [Stmt::Do(_)]);
        self.is_in_batches = is_right && is_block && !self.migration.runs_in_transaction;
    }

    fn look_at_block(&mut self, block: &ast::Do, line: usize) {
        let Some(body) = block.plpgsql() else {
            return self.breaks(Rule::Dynamic, None, line);
        };
        if !body.errors().is_empty() {
            self.breaks(Rule::Syntax, None, line);
        }
        if puts_sql_together(&body.syntax()) {
            self.breaks(Rule::Dynamic, None, line);
        }
        // A loop may also change rows and return them.
        self.apply(changed_rows(&body.syntax()), line);
        for node in body.syntax().descendants() {
            let is_statement = node
                .parent()
                .is_some_and(|parent| parent.kind() == SyntaxKind::PLPGSQL_EXEC_SQL_STMT);
            if let Some(statement) = Stmt::cast(node.clone()).filter(|_| is_statement) {
                self.apply(effects(&statement), line);
            }
        }
    }

    fn apply(&mut self, effects: Vec<Effect>, line: usize) {
        for effect in effects {
            match effect {
                Effect::Creates(table) => {
                    self.own_tables.insert(table);
                }
                Effect::Locks(table) => self.locked.push((table, line)),
                Effect::Breaks(rule, table) => self.breaks(rule, table, line),
                Effect::Concurrently {
                    created,
                    is_repeatable,
                } => {
                    let is_found = created.is_none_or(|index| {
                        let named = self.migration.name.split_once('_').map(|(_, name)| name);
                        named == Some(&["create_", &index].concat())
                    });
                    if !is_repeatable || !is_found {
                        self.breaks(Rule::Concurrently, None, line);
                    }
                }
                Effect::PromisesNotNull {
                    table,
                    constraint,
                    column,
                } => {
                    self.promises.made.insert((table, constraint), column);
                }
                Effect::Validates { table, constraint } => {
                    let made = self.promises.made.get(&(table.clone(), constraint));
                    if let Some(column) = made {
                        self.promises.kept.insert((table.clone(), column.clone()));
                    }
                    self.validated.push((table, line));
                }
                Effect::SetsNotNull { table, column } => {
                    if !self.promises.kept.contains(&(table.clone(), column)) {
                        self.breaks(Rule::NotNull, Some(table), line);
                    }
                }
                Effect::ChangesRows { table, is_limited } => {
                    if !(is_limited && self.is_in_batches) {
                        self.breaks(Rule::WholeTable, Some(table), line);
                    }
                }
            }
        }
    }

    /// Locks add up: they are held to the end of the transaction.
    fn look_at_locks(&mut self) {
        let is_foreign = |(table, _): &&(String, usize)| !self.own_tables.contains(table);
        let locked: Vec<_> = self.locked.iter().filter(is_foreign).cloned().collect();
        let second = locked.iter().find(|(table, _)| *table != locked[0].0);
        if let Some((_, line)) = second {
            self.breaks(Rule::SeveralTables, None, *line);
        }
        if !locked.is_empty() {
            for (table, line) in std::mem::take(&mut self.validated) {
                self.breaks(Rule::Validate, Some(table), line);
            }
        }
    }

    /// Returns the findings without those for which a comment answers, and the comments that answer for nothing.
    fn report(mut self, comments: &[String]) -> Vec<String> {
        let file = format!("migrations/{}/up.sql", self.migration.name);
        let mut allowed: BTreeMap<String, bool> = comments
            .iter()
            .filter_map(|comment| Some((allowance(comment)?, false)))
            .collect();
        self.broken.sort();
        self.broken.dedup();
        let mut findings = Vec::new();
        for broken in &self.broken {
            let is_own = broken
                .table
                .as_ref()
                .is_some_and(|table| self.own_tables.contains(table));
            if is_own {
                continue;
            }
            let name = broken.name();
            if let Some(is_used) = allowed.get_mut(&name) {
                *is_used = true;
                continue;
            }
            let (_, text) = broken.rule.texts();
            findings.push(format!("{file}:{}: {name}: {text}", broken.line));
        }
        let unused = allowed.into_iter().filter(|(_, is_used)| !is_used);
        findings.extend(unused.map(|(name, _)| {
            format!("{file}: `-- allow {name}` allows nothing: remove it, or name the rule and the table as the finding does")
        }));
        findings
    }
}

/// Returns what a comment of the form `-- allow RULE on TABLE: reason` allows.
fn allowance(comment: &str) -> Option<String> {
    let text = comment.strip_prefix("--")?.trim();
    let (name, reason) = text.strip_prefix("allow ")?.split_once(':')?;
    (!reason.trim().is_empty()).then(|| name.trim().to_owned())
}

/// Returns whether a block runs texts as SQL. A trigger also says EXECUTE, but names a function.
fn puts_sql_together(body: &SyntaxNode) -> bool {
    body.descendants_with_tokens()
        .filter(|element| element.kind() == SyntaxKind::EXECUTE_KW)
        .any(|element| {
            element
                .parent()
                .is_none_or(|parent| parent.kind() != SyntaxKind::CREATE_TRIGGER)
        })
}
