//! Which states of an order a client allows to be changed.

use super::super::Revision;

/// A set of revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revisions {
    /// Every revision.
    Any,
    /// These revisions.
    These(Vec<Revision>),
}

impl Revisions {
    /// Returns whether the revision belongs to the set.
    pub fn contains(&self, revision: Revision) -> bool {
        match self {
            Self::Any => true,
            Self::These(revisions) => revisions.contains(&revision),
        }
    }
}

/// What a client demands of the order that it wants to write (RFC 9110, section 13.1). `None` demands nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Precondition {
    /// `If-Match`: the order exists, and its revision is one of these.
    pub accepted: Option<Revisions>,
    /// `If-None-Match`: the order does not exist, or its revision is none of these.
    pub refused: Option<Revisions>,
}

impl Precondition {
    /// The order does not exist.
    pub(super) const ABSENT: Self = Self {
        accepted: None,
        refused: Some(Revisions::Any),
    };

    /// Returns whether the order must not exist, so that writing it creates it.
    pub(super) fn demands_absence(&self) -> bool {
        self.refused == Some(Revisions::Any)
    }

    /// Evaluates both for the revision that the order has; `None` if there is no order.
    pub(super) fn holds(&self, current: Option<Revision>) -> bool {
        let is_one_of =
            |revisions: &Revisions| current.is_some_and(|current| revisions.contains(current));
        let is_accepted = self.accepted.as_ref().is_none_or(is_one_of);
        let is_refused = self.refused.as_ref().is_some_and(is_one_of);
        is_accepted && !is_refused
    }
}
