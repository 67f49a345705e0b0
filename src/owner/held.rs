//! Which partitions are held, and how far each is: read, durable, committed. Knows no task and no
//! clock.

use std::collections::BTreeMap;

use crate::base::Partition;
use crate::ports::{Batch, Bounds, Commit, Mark, Owned, Tenure, Want};

/// One owned partition.
#[derive(Debug)]
struct Held {
    tenure: Tenure,
    /// What to read next.
    next: u64,
    /// Everything below is durable.
    done: u64,
    /// The checkpoint, as far as this node knows.
    committed: u64,
    /// End of the partition when it was last read.
    end: u64,
    is_in_work: bool,
}

/// What a batch has come to, once it is durable.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub partition: Partition,
    pub tenure: Tenure,
    /// Everything below is durable when it is taken into work.
    from: u64,
    next: u64,
}

/// Partitions of the topics that are served, and records that are not durable yet: theirs, and
/// those of the topics of dead letters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Lag {
    pub partitions: u64,
    pub served: u64,
    pub dead: u64,
}

/// The partitions of this node. Each has one batch in work, at most.
#[derive(Debug, Default)]
pub struct Holdings {
    held: BTreeMap<Partition, Held>,
    owned: Owned,
}

impl Holdings {
    pub fn owned(&self) -> &Owned {
        &self.owned
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Forgets what went; returns what came, which `handle_start` begins.
    pub fn handle_owned(&mut self, owned: Owned) -> Vec<Partition> {
        self.held.retain(|partition, held| owned.get(partition) == Some(&held.tenure));
        self.owned = owned;
        let is_new = |partition: &&Partition| !self.held.contains_key(partition);
        self.owned.keys().filter(is_new).copied().collect()
    }

    /// Begins with a partition that came, at its checkpoint. Without one all is to be done that was
    /// ever there; of dead letters, what is there.
    pub fn handle_start(&mut self, partition: Partition, checkpoint: Option<u64>, bounds: Bounds) {
        let Some(tenure) = self.owned.get(&partition).copied() else { return };
        let first = if partition.topic.is_dead() { bounds.start } else { 0 };
        let next = checkpoint.unwrap_or(first);
        let (done, committed, end) = (next, next, bounds.end);
        let held = Held { tenure, next, done, committed, end, is_in_work: false };
        self.held.insert(partition, held);
    }

    /// From where to read the partitions that have nothing in work.
    pub fn wants(&self) -> Vec<Want> {
        let idle = self.held.iter().filter(|(_, held)| !held.is_in_work);
        idle.map(|(partition, held)| Want { partition: *partition, offset: held.next }).collect()
    }

    /// Takes a batch into work, if it is one that was wanted; what it is once it is durable.
    pub fn handle_batch(&mut self, batch: &Batch) -> Option<Kept> {
        let held = self.held.get_mut(&batch.partition)?;
        if held.is_in_work || batch.next <= held.next {
            return None;
        }
        let from = std::mem::replace(&mut held.next, batch.next);
        held.is_in_work = true;
        held.end = batch.end;
        Some(Kept { partition: batch.partition, tenure: held.tenure, from, next: batch.next })
    }

    /// The log has lost what was to be kept next, up to there: takes the hole into work; what it is
    /// once it is noted.
    pub fn handle_hole(&mut self, partition: Partition, to: u64) -> Option<Kept> {
        let held = self.held.get_mut(&partition)?;
        if held.is_in_work || to <= held.next {
            return None;
        }
        let from = std::mem::replace(&mut held.next, to);
        held.is_in_work = true;
        Some(Kept { partition, tenure: held.tenure, from, next: to })
    }

    /// A batch is durable. Of one from before a skip, or before the partition was begun anew,
    /// nothing follows: what lies between may not be durable.
    pub fn handle_kept(&mut self, kept: Kept) {
        let Kept { partition, tenure, from, next } = kept;
        let is_in_work =
            |held: &&mut Held| (held.tenure, held.done, held.next) == (tenure, from, next);
        if let Some(held) = self.held.get_mut(&partition).filter(is_in_work) {
            held.is_in_work = false;
            held.done = next;
        }
    }

    /// What is durable and not committed.
    pub fn marks(&self) -> Vec<Mark> {
        let is_due = |held: &&Held| held.done > held.committed;
        let due = self.held.iter().map(|(partition, held)| (*partition, held));
        due.filter(|(_, held)| is_due(held))
            .map(|(partition, held)| Mark { partition, tenure: held.tenure, next: held.done })
            .collect()
    }

    /// What became of a mark; whether it lost the partition.
    pub fn handle_commit(&mut self, mark: Mark, commit: Commit) -> bool {
        let held = self.held.get_mut(&mark.partition);
        match (commit, held.filter(|held| held.tenure == mark.tenure)) {
            (Commit::Done, Some(held)) => {
                // A mark from before a skip back says nothing of the log as it is now.
                if mark.next <= held.done {
                    held.committed = held.committed.max(mark.next);
                }
                false
            }
            (Commit::Lost, Some(_)) => {
                self.held.remove(&mark.partition);
                true
            }
            (_, None) => false,
        }
    }

    /// The log goes on at `next`: it is another one, or what it lost is nobody's. Whether it is
    /// held.
    pub fn skip(&mut self, partition: Partition, next: u64) -> bool {
        let Some(held) = self.held.get_mut(&partition) else { return false };
        held.next = next;
        held.done = next;
        held.committed = held.committed.min(next);
        held.is_in_work = false;
        true
    }

    /// How much there is, and how far behind.
    pub fn lag(&self) -> Lag {
        let mut all = Lag::default();
        for (partition, held) in &self.held {
            let lag = held.end.saturating_sub(held.done);
            if partition.topic.is_dead() {
                all.dead += lag;
            } else {
                all.partitions += 1;
                all.served += lag;
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Topic;

    const PARTITION: Partition = Partition { topic: Topic::Group, index: 0 };

    fn batch(next: u64) -> Batch {
        Batch { partition: PARTITION, records: Vec::new(), next, end: 100 }
    }

    /// Holds the partition from its checkpoint on.
    fn holdings(checkpoint: u64) -> Holdings {
        let mut holdings = Holdings::default();
        begin(&mut holdings, checkpoint);
        holdings
    }

    fn begin(holdings: &mut Holdings, checkpoint: u64) {
        let came = holdings.handle_owned([(PARTITION, Tenure(1))].into());
        assert_eq!(came, [PARTITION]);
        holdings.handle_start(PARTITION, Some(checkpoint), Bounds { start: 0, end: 100 });
    }

    fn done(holdings: &Holdings) -> Option<u64> {
        holdings.marks().first().map(|mark| mark.next)
    }

    fn is_idle(holdings: &Holdings) -> bool {
        !holdings.wants().is_empty()
    }

    #[test]
    fn a_mark_rises_with_each_batch() {
        let mut holdings = holdings(10);
        for next in [20, 30] {
            let kept = holdings.handle_batch(&batch(next)).expect("it was wanted");
            assert!(!is_idle(&holdings) && holdings.handle_batch(&batch(next + 1)).is_none());
            holdings.handle_kept(kept);
            assert!(is_idle(&holdings));
            assert_eq!(done(&holdings), Some(next));
        }
    }

    #[test]
    fn a_batch_from_before_a_skip_moves_no_mark() {
        // Behind what was in work, into the midst of it, and before it: the log is another one.
        for next in [50, 15, 3] {
            let mut holdings = holdings(10);
            let kept = holdings.handle_batch(&batch(20)).expect("it was wanted");
            assert!(holdings.skip(PARTITION, next));
            assert!(is_idle(&holdings), "what follows is to be read");
            let marks = holdings.marks();
            holdings.handle_kept(kept);
            assert_eq!(holdings.marks(), marks, "{next}");
            let again = holdings.handle_batch(&batch(60)).expect("it was wanted");
            holdings.handle_kept(kept);
            assert!(!is_idle(&holdings), "{next}: another batch is in work");
            holdings.handle_kept(again);
            assert_eq!(done(&holdings), Some(60));
        }
    }

    #[test]
    fn a_mark_from_before_a_skip_back_keeps_no_later_one_from_being_committed() {
        let mut holdings = holdings(10);
        let kept = holdings.handle_batch(&batch(50)).expect("it was wanted");
        holdings.handle_kept(kept);
        let under_way = holdings.marks();
        assert!(holdings.skip(PARTITION, 0));
        assert!(!holdings.handle_commit(under_way[0], Commit::Done));
        let kept = holdings.handle_batch(&batch(20)).expect("it was wanted");
        holdings.handle_kept(kept);
        assert_eq!(done(&holdings), Some(20));
        assert!(!holdings.handle_commit(holdings.marks()[0], Commit::Done));
        assert_eq!(holdings.marks(), [], "it is committed");
    }

    #[test]
    fn a_batch_from_before_a_new_start_moves_no_mark() {
        // The same tenure: at a checkpoint from before, and at the same with a smaller batch.
        for (checkpoint, next) in [(5, 20), (10, 15)] {
            let mut holdings = holdings(10);
            let kept = holdings.handle_batch(&batch(20)).expect("it was wanted");
            let mark = Mark { partition: PARTITION, tenure: Tenure(1), next: 10 };
            assert!(holdings.handle_commit(mark, Commit::Lost));
            begin(&mut holdings, checkpoint);
            let again = holdings.handle_batch(&batch(next)).expect("it was wanted");
            holdings.handle_kept(kept);
            assert!(!is_idle(&holdings), "{next}: another batch is in work");
            holdings.handle_kept(again);
            assert_eq!(done(&holdings), Some(next));
        }
    }
}
