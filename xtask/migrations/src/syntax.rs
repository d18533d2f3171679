//! Names and marks in the syntax tree of a statement.

use squawk_syntax::ast::{AstNode, SourceFile};
use squawk_syntax::{SyntaxKind, SyntaxNode};

/// Returns the name of the first table in `node`, without its schema and its quotes.
///
/// A table in another schema counts as the same one. All of ours are in one schema.
pub(crate) fn table_in(node: &SyntaxNode) -> Option<String> {
    tables_in(node).into_iter().next()
}

/// Returns the names of all tables in `node`.
pub(crate) fn tables_in(node: &SyntaxNode) -> Vec<String> {
    named_in(
        node,
        &[
            SyntaxKind::TABLE_NAME,
            SyntaxKind::TABLE_NAME_REF,
            SyntaxKind::RELATION_NAME_REF,
        ],
    )
}

/// Returns the last part of every name in `node` that has one of these kinds.
pub(crate) fn named_in(node: &SyntaxNode, kinds: &[SyntaxKind]) -> Vec<String> {
    node.descendants()
        .filter(|child| kinds.contains(&child.kind()))
        .filter_map(|child| {
            let last = child.descendants_with_tokens().filter_map(|element| {
                let token = element.into_token()?;
                let is_name = !token.kind().is_trivia() && token.kind() != SyntaxKind::DOT;
                is_name.then(|| token.text().to_owned())
            });
            last.last()
        })
        .map(|name| unquoted(&name))
        .collect()
}

/// PostgreSQL folds names to lower case unless they are quoted.
fn unquoted(name: &str) -> String {
    match name
        .strip_prefix('"')
        .and_then(|name| name.strip_suffix('"'))
    {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => name.to_lowercase(),
    }
}

/// Returns whether a token or a node of this kind is anywhere in `node`.
pub(crate) fn has(node: &SyntaxNode, kind: SyntaxKind) -> bool {
    node.descendants_with_tokens()
        .any(|element| element.kind() == kind)
}

/// Returns the text of each comment of a file.
pub(crate) fn comments(file: &SourceFile) -> Vec<String> {
    file.syntax()
        .descendants_with_tokens()
        .filter_map(squawk_syntax::SyntaxElement::into_token)
        .filter(|token| token.kind() == SyntaxKind::COMMENT)
        .map(|token| token.text().to_owned())
        .collect()
}

/// Returns the number of the line in which `node` begins.
pub(crate) fn line_of(text: &str, node: &SyntaxNode) -> usize {
    let start = usize::from(node.text_range().start());
    1 + text[..start].matches('\n').count()
}
