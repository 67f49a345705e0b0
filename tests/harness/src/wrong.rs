//! What can be wrong with what a client got.

use std::fmt;
use std::ops::AddAssign;

/// How many messages of each kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wrong {
    pub missed: usize,
    pub twice: usize,
    /// For somebody else, with another content, or what nobody wrote.
    pub strange: usize,
    /// Behind a later one of its partition.
    pub late: usize,
    /// Events that told of a gap.
    pub gaps: usize,
}

impl AddAssign for Wrong {
    fn add_assign(&mut self, other: Self) {
        self.missed += other.missed;
        self.twice += other.twice;
        self.strange += other.strange;
        self.late += other.late;
        self.gaps += other.gaps;
    }
}

/// The numbers in this order.
impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { missed, twice, strange, late, gaps } = self;
        write!(f, "{missed} {twice} {strange} {late} {gaps}")
    }
}
