//! Nodes that own something: started, frozen, crashed, asked what they own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use corecast::base::{Partition, Topic};
use corecast::ports::{Commit, LogError, Mark, Owned, Ownership, Standing};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::{LONG, LOOK, all_partitions, marks};

/// One that takes part, or tries to, until it is dropped. Dropping it is a crash: nobody is told.
pub struct Node {
    pub ownership: Arc<dyn Ownership>,
    running: JoinHandle<()>,
    is_frozen: watch::Sender<bool>,
    standing: watch::Receiver<Option<Standing>>,
}

impl Node {
    pub fn start(ownership: Arc<dyn Ownership>) -> Self {
        let is_frozen = watch::Sender::new(false);
        let (tell, standing) = watch::channel(None);
        let (frozen, runs) = (is_frozen.subscribe(), ownership.clone());
        let running = tokio::spawn(async move {
            let told = |standing: Standing| {
                println!("{standing:?}");
                tell.send_replace(Some(standing));
            };
            thawed(runs.run(&told), frozen).await;
        });
        Self { ownership, running, is_frozen, standing }
    }

    /// What it owns now.
    pub async fn owned(&self) -> Owned {
        let none = Owned::new();
        let now = tokio::time::timeout(Duration::ZERO, self.ownership.owned(&none));
        now.await.unwrap_or_default()
    }

    /// Waits until it owns every partition.
    pub async fn owns_all(&self) -> Owned {
        let mut owned = Owned::new();
        let all = async {
            while !owned.keys().copied().eq(all_partitions()) {
                owned = self.ownership.owned(&owned).await;
            }
        };
        let waited = tokio::time::timeout(LONG, all).await;
        assert!(waited.is_ok(), "waited {LONG:?} in vain for all partitions; has {owned:?}");
        owned
    }

    /// Waits until it says so of how taking part goes.
    pub async fn says(&self, is_it: impl Fn(&Standing) -> bool) -> Standing {
        let mut standing = self.standing.clone();
        let found = standing.wait_for(|now| now.as_ref().is_some_and(&is_it));
        let Ok(found) = tokio::time::timeout(LONG, found).await else {
            panic!("waited {LONG:?} in vain; it says {:?}", self.standing.borrow());
        };
        found.expect("it runs").clone().expect("found")
    }

    pub async fn is_member(&self) {
        self.says(|standing| *standing == Standing::Member).await;
    }

    /// What was said last.
    pub fn standing(&self) -> Option<Standing> {
        self.standing.borrow().clone()
    }

    /// Nothing of it runs, as if the process stood still; its connections stay.
    pub fn freeze(&self) {
        self.is_frozen.send_replace(true);
    }

    pub fn thaw(&self) {
        self.is_frozen.send_replace(false);
    }

    /// Whether its `run` has ended.
    pub fn has_ended(&self) -> bool {
        self.running.is_finished()
    }

    pub async fn commit(&self, marks: &[Mark]) -> Vec<Commit> {
        patient("a commit", async || self.ownership.commit(marks).await).await
    }

    /// Commits this for each partition that it owns now.
    pub async fn commit_all(&self, next: u64) {
        let marks = marks(&self.owned().await, next);
        assert_eq!(self.commit(&marks).await, vec![Commit::Done; marks.len()]);
    }

    pub async fn checkpoints(&self) -> BTreeMap<Partition, u64> {
        patient("checkpoints", async || self.ownership.checkpoints().await).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// Polls the future only while it is not frozen.
async fn thawed(future: impl Future<Output = LogError>, mut is_frozen: watch::Receiver<bool>) {
    let mut future = std::pin::pin!(future);
    loop {
        tokio::select! {
            biased;
            _ = is_frozen.wait_for(|is_frozen| *is_frozen) => {}
            error = &mut future => {
                println!("ended: {error}");
                return;
            }
        }
        if is_frozen.wait_for(|is_frozen| !is_frozen).await.is_err() {
            return;
        }
    }
}

/// Tries again while the log is away, as everybody who uses one does.
pub async fn patient<T>(what: &str, call: impl AsyncFn() -> Result<T, LogError>) -> T {
    let began = Instant::now();
    loop {
        match call().await {
            Ok(done) => return done,
            Err(LogError::Away(reason)) => {
                assert!(began.elapsed() < LONG, "waited {LONG:?} in vain: {what}: {reason}");
                tokio::time::sleep(LOOK).await;
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

/// Waits until these nodes own everything between them, each partition once and evenly.
pub async fn share_all(nodes: &[&Node]) -> Vec<Owned> {
    let began = Instant::now();
    loop {
        let mut all = Vec::new();
        for node in nodes {
            all.push(node.owned().await);
        }
        if is_even(&all) {
            return all;
        }
        assert!(began.elapsed() < LONG, "waited {LONG:?} in vain for an even share; {all:?}");
        tokio::time::sleep(LOOK).await;
    }
}

fn is_even(all: &[Owned]) -> bool {
    let owned: Vec<Partition> = all.iter().flat_map(Owned::keys).copied().collect();
    let distinct: BTreeSet<Partition> = owned.iter().copied().collect();
    let is_complete = distinct.into_iter().eq(all_partitions());
    // Both topics of dead letters are shared out together.
    let groups = [&[Topic::Selected][..], &[Topic::Group], &Topic::DEAD];
    let is_even = |topics: &[Topic]| {
        let size = |owned: &Owned| topics.iter().map(|topic| count(owned, *topic)).sum::<usize>();
        let sizes = || all.iter().map(size);
        sizes().max().unwrap_or(0) <= sizes().min().unwrap_or(0) + 1
    };
    owned.len() == all_partitions().count() && is_complete && groups.into_iter().all(is_even)
}

/// How many partitions of a topic are owned.
pub fn count(owned: &Owned, topic: Topic) -> usize {
    owned.keys().filter(|partition| partition.topic == topic).count()
}
