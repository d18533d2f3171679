//! What a statement does to tables. Whether that is allowed depends on the rest of the migration, which is not known here.

use squawk_syntax::ast::{self, AlterColumnOption, AlterTableAction, AstNode, Constraint, Stmt};
use squawk_syntax::{SyntaxKind, SyntaxNode};

use crate::rules::Rule;
use crate::syntax::{has, named_in, table_in, tables_in};

/// Functions that return the same value for each row of a statement, so that PostgreSQL stores it only once. There are
/// more, but nobody has needed them yet.
const STABLE_FUNCTIONS: [&str; 2] = ["now", "transaction_timestamp"];
/// Types whose default draws from a sequence.
const SERIAL_TYPES: [&str; 6] = [
    "serial",
    "serial2",
    "serial4",
    "serial8",
    "bigserial",
    "smallserial",
];

/// One thing that a statement does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It makes a table, which nobody else can use before the end of the transaction.
    Creates(String),
    /// It takes a lock that stops writers or everybody, but only for a moment.
    Locks(String),
    /// It breaks a rule, unless the table was made by the same migration. `None`: no table is concerned.
    Breaks(Rule, Option<String>),
    /// It builds this index CONCURRENTLY, or drops one (`None`).
    Concurrently {
        created: Option<String>,
        /// It says IF NOT EXISTS or IF EXISTS.
        is_repeatable: bool,
    },
    /// It adds a constraint which says that a column is not null, and which existing rows need not keep.
    PromisesNotNull {
        table: String,
        constraint: String,
        column: String,
    },
    /// It reads the whole table to see whether all rows keep a constraint. The lock stops nobody.
    Validates { table: String, constraint: String },
    /// It marks a column as NOT NULL, which reads the whole table unless a valid constraint says so already.
    SetsNotNull { table: String, column: String },
    /// It changes or removes rows. The mark tells whether a LIMIT bounds how many.
    ChangesRows { table: String, is_limited: bool },
}

/// Returns what a statement does. A DO block does nothing here: its statements are looked at one by one.
pub(crate) fn effects(statement: &Stmt) -> Vec<Effect> {
    let node = statement.syntax();
    let mut effects = changed_rows(node);
    match statement {
        Stmt::CreateTable(_) | Stmt::CreateTableAs(_) => effects.extend(created_table(node)),
        Stmt::CreateIndex(index) => effects.push(created_index(index)),
        Stmt::DropIndex(index) => effects.push(if index.concurrently_token().is_some() {
            let is_repeatable = index.if_exists().is_some();
            Effect::Concurrently {
                created: None,
                is_repeatable,
            }
        } else {
            Effect::Breaks(Rule::Index, None)
        }),
        Stmt::AlterTable(table) => effects.extend(altered_table(table)),
        Stmt::CreateTrigger(_)
        | Stmt::DropTrigger(_)
        | Stmt::AlterTrigger(_)
        | Stmt::CreatePolicy(_)
        | Stmt::DropPolicy(_)
        | Stmt::AlterPolicy(_) => {
            effects.extend(tables_in(node).into_iter().map(Effect::Locks));
        }
        _ => {
            if let Some(rule) = rule_of(statement) {
                let tables = tables_in(node);
                if tables.is_empty() {
                    effects.push(Effect::Breaks(rule, None));
                }
                let breaks = |table| Effect::Breaks(rule, Some(table));
                effects.extend(tables.into_iter().map(breaks));
            }
        }
    }
    effects
}

/// Returns the rule that a statement breaks whatever it says, or `None` if it takes no strong lock.
fn rule_of(statement: &Stmt) -> Option<Rule> {
    match statement {
        // What they make is new, or they lock nothing that others use, or only rows. `changed_rows` has the latter.
        Stmt::Analyze(_)
        | Stmt::CommentOn(_)
        | Stmt::CreateAggregate(_)
        | Stmt::CreateDomain(_)
        | Stmt::CreateExtension(_)
        | Stmt::CreateFunction(_)
        | Stmt::CreateMaterializedView(_)
        | Stmt::CreateProcedure(_)
        | Stmt::CreateSchema(_)
        | Stmt::CreateSequence(_)
        | Stmt::CreateStatistics(_)
        | Stmt::CreateType(_)
        | Stmt::CreateView(_)
        | Stmt::AlterFunction(_)
        | Stmt::AlterProcedure(_)
        | Stmt::AlterSequence(_)
        | Stmt::Grant(_)
        | Stmt::Revoke(_)
        | Stmt::Insert(_)
        | Stmt::Select(_)
        | Stmt::Update(_)
        | Stmt::Delete(_)
        | Stmt::Merge(_)
        | Stmt::EmptyStmt(_)
        | Stmt::Do(_) => None,
        Stmt::AlterIndex(index) if has(index.syntax(), SyntaxKind::RENAME_KW) => None,
        Stmt::Refresh(view) if view.concurrently_token().is_some() => None,
        Stmt::Lock(_) => Some(Rule::LockTable),
        Stmt::Truncate(_) => Some(Rule::Truncate),
        Stmt::Cluster(_)
        | Stmt::Reindex(_)
        | Stmt::Repack(_)
        | Stmt::Refresh(_)
        | Stmt::Vacuum(_) => Some(Rule::Rewrite),
        Stmt::DropFunction(_)
        | Stmt::DropMaterializedView(_)
        | Stmt::DropProcedure(_)
        | Stmt::DropSchema(_)
        | Stmt::DropSequence(_)
        | Stmt::DropTable(_)
        | Stmt::DropType(_)
        | Stmt::DropView(_) => Some(Rule::Drop),
        Stmt::AlterView(view) if has(view.syntax(), SyntaxKind::RENAME_KW) => Some(Rule::Rename),
        Stmt::Call(_) | Stmt::Execute(_) => Some(Rule::Dynamic),
        Stmt::Begin(_)
        | Stmt::Commit(_)
        | Stmt::Rollback(_)
        | Stmt::SavepointCreate(_)
        | Stmt::ReleaseSavepoint(_)
        | Stmt::Set(_)
        | Stmt::SetRole(_)
        | Stmt::SetSessionAuth(_)
        | Stmt::SetTransaction(_)
        | Stmt::Reset(_)
        | Stmt::ResetRole(_)
        | Stmt::ResetSessionAuth(_)
        | Stmt::Discard(_) => Some(Rule::Session),
        _ => Some(Rule::Unknown),
    }
}

/// Returns what is done to rows anywhere in `node`: also by the statements in WITH.
pub(crate) fn changed_rows(node: &SyntaxNode) -> Vec<Effect> {
    let kinds = [SyntaxKind::UPDATE, SyntaxKind::DELETE, SyntaxKind::MERGE];
    let changes = node
        .descendants()
        .filter(|child| kinds.contains(&child.kind()));
    changes
        .filter_map(|change| {
            Some(Effect::ChangesRows {
                table: table_in(&change)?,
                is_limited: has(&change, SyntaxKind::LIMIT_CLAUSE),
            })
        })
        .collect()
}

/// A table may exist already if it says IF NOT EXISTS. The tables that foreign keys name are locked.
fn created_table(node: &SyntaxNode) -> Vec<Effect> {
    let is_new = !has(node, SyntaxKind::IF_NOT_EXISTS);
    let name = named_in(node, &[SyntaxKind::TABLE_NAME]).into_iter().next();
    let referenced = node
        .descendants()
        .filter(|child| child.kind() == SyntaxKind::TABLE_NAME_REF);
    let locks = referenced
        .filter_map(|child| table_in(&child))
        .map(Effect::Locks);
    let creates = name.filter(|_| is_new).map(Effect::Creates);
    creates.into_iter().chain(locks).collect()
}

fn created_index(index: &ast::CreateIndex) -> Effect {
    let table = table_in(index.syntax());
    if index.concurrently_token().is_none() {
        return Effect::Breaks(Rule::Index, table);
    }
    let created = named_in(index.syntax(), &[SyntaxKind::INDEX]);
    Effect::Concurrently {
        // An empty name never matches.
        created: Some(created.into_iter().next().unwrap_or_default()),
        is_repeatable: index.if_not_exists().is_some(),
    }
}

fn altered_table(statement: &ast::AlterTable) -> Vec<Effect> {
    let target = statement.table_relation_name();
    let Some(table) = target.and_then(|target| table_in(target.syntax())) else {
        return vec![Effect::Breaks(Rule::Unknown, None)];
    };
    let mut effects = Vec::new();
    for action in statement.actions() {
        let of_action = effects_of_action(&action, &table);
        if !matches!(of_action[..], [Effect::Validates { .. }]) {
            effects.push(Effect::Locks(table.clone()));
        }
        effects.extend(of_action);
    }
    effects
}

fn effects_of_action(action: &AlterTableAction, table: &str) -> Vec<Effect> {
    let breaks = |rule| vec![Effect::Breaks(rule, Some(table.to_owned()))];
    match action {
        AlterTableAction::AddColumn(column) => added_column(column, table),
        AlterTableAction::AddConstraint(added) => match added.constraint() {
            Some(constraint) => added_constraint(&constraint, table),
            None => breaks(Rule::Unknown),
        },
        AlterTableAction::AlterColumn(column) => match column.option() {
            Some(AlterColumnOption::SetNotNull(_)) => vec![Effect::SetsNotNull {
                table: table.to_owned(),
                column: first_of(column.syntax(), SyntaxKind::COLUMN_NAME_REF),
            }],
            Some(AlterColumnOption::SetType(_) | AlterColumnOption::SetExpression(_)) => {
                breaks(Rule::ColumnType)
            }
            Some(_) => Vec::new(),
            None => breaks(Rule::Unknown),
        },
        AlterTableAction::ValidateConstraint(validated) => vec![Effect::Validates {
            table: table.to_owned(),
            constraint: first_of(validated.syntax(), SyntaxKind::CONSTRAINT_NAME_REF),
        }],
        AlterTableAction::DropColumn(_) => breaks(Rule::Drop),
        AlterTableAction::RenameColumn(_)
        | AlterTableAction::TableRenameTo(_)
        | AlterTableAction::SetSchema(_) => breaks(Rule::Rename),
        AlterTableAction::SetLogged(_)
        | AlterTableAction::SetUnlogged(_)
        | AlterTableAction::SetTablespace(_)
        | AlterTableAction::SetAccessMethod(_) => breaks(Rule::Rewrite),
        // They change the catalogue only.
        AlterTableAction::DropConstraint(_)
        | AlterTableAction::RenameConstraint(_)
        | AlterTableAction::AlterConstraint(_)
        | AlterTableAction::EnableTrigger(_)
        | AlterTableAction::EnableAlwaysTrigger(_)
        | AlterTableAction::EnableReplicaTrigger(_)
        | AlterTableAction::DisableTrigger(_)
        | AlterTableAction::EnableRls(_)
        | AlterTableAction::DisableRls(_)
        | AlterTableAction::OwnerTo(_)
        | AlterTableAction::ReplicaIdentity(_)
        | AlterTableAction::SetOptions(_)
        | AlterTableAction::ResetOptions(_) => Vec::new(),
        _ => breaks(Rule::Unknown),
    }
}

fn added_column(column: &ast::AddColumn, table: &str) -> Vec<Effect> {
    let constraints: Vec<Constraint> = column.constraints().collect();
    let has_default = constraints
        .iter()
        .any(|constraint| matches!(constraint, Constraint::DefaultConstraint(_)));
    let type_name = column.ty().map(|name| name.syntax().text().to_string());
    let type_name = type_name.unwrap_or_default().to_lowercase();
    let mut rules = Vec::new();
    if SERIAL_TYPES.contains(&type_name.as_str()) {
        rules.push(Rule::ColumnDefault);
    }
    for constraint in &constraints {
        match constraint {
            Constraint::DefaultConstraint(default) if !is_stable(default.syntax()) => {
                rules.push(Rule::ColumnDefault);
            }
            Constraint::GeneratedConstraint(_) => rules.push(Rule::ColumnDefault),
            Constraint::NotNullConstraint(_) if !has_default => rules.push(Rule::NotNull),
            Constraint::CheckConstraint(_)
            | Constraint::ReferencesConstraint(_)
            | Constraint::ForeignKeyConstraint(_) => rules.push(Rule::Constraint),
            Constraint::UniqueConstraint(_)
            | Constraint::PrimaryKeyConstraint(_)
            | Constraint::ExcludeConstraint(_) => rules.push(Rule::Unique),
            Constraint::DefaultConstraint(_)
            | Constraint::NotNullConstraint(_)
            | Constraint::NullConstraint(_) => {}
        }
    }
    let breaks = |rule| Effect::Breaks(rule, Some(table.to_owned()));
    rules.into_iter().map(breaks).collect()
}

/// Returns whether a default is one value for all rows that exist.
fn is_stable(default: &SyntaxNode) -> bool {
    default
        .descendants()
        .filter(|node| node.kind() == SyntaxKind::CALL_EXPR)
        .all(|call| {
            let name = first_of(&call, SyntaxKind::NAME_REF);
            STABLE_FUNCTIONS.contains(&name.as_str())
        })
}

fn added_constraint(constraint: &Constraint, table: &str) -> Vec<Effect> {
    let node = constraint.syntax();
    let is_checked_later = has(node, SyntaxKind::NOT_VALID);
    let breaks = |rule| vec![Effect::Breaks(rule, Some(table.to_owned()))];
    match constraint {
        Constraint::CheckConstraint(check) if is_checked_later => {
            let promised = check
                .expr()
                .and_then(|expression| never_null(expression.syntax()));
            let promise = promised.map(|column| Effect::PromisesNotNull {
                table: table.to_owned(),
                constraint: first_of(node, SyntaxKind::CONSTRAINT_NAME),
                column,
            });
            promise.into_iter().collect()
        }
        Constraint::ForeignKeyConstraint(_) => {
            let mut effects: Vec<Effect> = tables_in(node).into_iter().map(Effect::Locks).collect();
            if !is_checked_later {
                effects.extend(breaks(Rule::Constraint));
            }
            effects
        }
        Constraint::CheckConstraint(_) => breaks(Rule::Constraint),
        Constraint::NotNullConstraint(_) if is_checked_later => Vec::new(),
        Constraint::NotNullConstraint(_) => breaks(Rule::NotNull),
        Constraint::PrimaryKeyConstraint(key) if key.using_index().is_some() => Vec::new(),
        Constraint::UniqueConstraint(key) if key.using_index().is_some() => Vec::new(),
        Constraint::PrimaryKeyConstraint(_)
        | Constraint::UniqueConstraint(_)
        | Constraint::ExcludeConstraint(_) => breaks(Rule::Unique),
        _ => breaks(Rule::Unknown),
    }
}

/// Returns the column of an expression of the form `column IS NOT NULL`.
fn never_null(expression: &SyntaxNode) -> Option<String> {
    let tokens = expression.descendants_with_tokens().filter_map(|element| {
        let token = element.into_token()?;
        (!token.kind().is_trivia()).then_some(token)
    });
    let tokens: Vec<_> = tokens.collect();
    let [_, is, not, null] = &tokens[..] else {
        return None;
    };
    let kinds = [is.kind(), not.kind(), null.kind()];
    let is_promise = kinds == [SyntaxKind::IS_KW, SyntaxKind::NOT_KW, SyntaxKind::NULL_KW];
    is_promise.then(|| first_of(expression, SyntaxKind::NAME_REF))
}

/// Returns the first name of this kind, or an empty text, which is no name.
fn first_of(node: &SyntaxNode, kind: SyntaxKind) -> String {
    named_in(node, &[kind])
        .into_iter()
        .next()
        .unwrap_or_default()
}
