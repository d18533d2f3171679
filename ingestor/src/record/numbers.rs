//! Numbers that must not be taken for one another, with the types under which the database stores them.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use clap::builder::TypedValueParser;
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::serialize::{self, Output, ToSql};
use diesel::sql_types::{BigInt, Integer};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($number:ty): $sql_type:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, AsExpression, FromSqlRow)]
        #[diesel(sql_type = $sql_type)]
        pub struct $name(
            /// The number itself.
            pub $number,
        );

        impl $name {
            /// The number after this one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, formatter)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;

            fn from_str(text: &str) -> Result<Self, ParseIntError> {
                text.parse().map(Self)
            }
        }

        impl FromSql<$sql_type, Pg> for $name {
            fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
                FromSql::<$sql_type, Pg>::from_sql(value).map(Self)
            }
        }

        impl ToSql<$sql_type, Pg> for $name {
            fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
                ToSql::<$sql_type, Pg>::to_sql(&self.0, out)
            }
        }
    };
}

number! {
    /// A partition of the topic.
    Partition(i32): Integer
}

impl Partition {
    /// Parses a partition on the command line.
    pub fn parser() -> impl TypedValueParser<Value = Self> {
        clap::value_parser!(i32).range(0..).map(Self)
    }
}

number! {
    /// A record's number in its partition.
    Offset(i64): BigInt
}
number! {
    /// How often a partition has been claimed: batches of an older epoch are rejected.
    Epoch(i64): BigInt
}
number! {
    /// How often a partition's offsets have begun to repeat. Offsets of different incarnations are not comparable.
    Incarnation(i32): Integer
}
