//! The plan of a query with its parameters.

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::Text;

/// `EXPLAIN` of a query.
#[derive(QueryId)]
pub(super) struct Explain<Q> {
    pub(super) options: &'static str,
    pub(super) query: Q,
}

impl<Q> Query for Explain<Q> {
    type SqlType = Text;
}

impl<Q: QueryFragment<Pg>> QueryFragment<Pg> for Explain<Q> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        // The type does not tell the options.
        out.unsafe_to_cache_prepared();
        out.push_sql("EXPLAIN (");
        out.push_sql(self.options);
        out.push_sql(") ");
        self.query.walk_ast(out)
    }
}

#[cfg(test)]
impl<Q> diesel::RunQueryDsl<PgConnection> for Explain<Q> {}
