//! What every ownership must do. Each check is given a site of its own, in which nothing is
//! committed.

use std::collections::BTreeMap;
use std::pin::Pin;

use corecast::base::{Partition, Topic};
use corecast::ports::{Commit, Mark, Owned, Standing, Tenure};

use crate::nodes::{Node, patient};
use crate::{PARTITIONS, Site, all_partitions, marks};

type Check = for<'a> fn(&'a dyn Site) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

const CHECKS: &[(&str, Check)] = &[
    ("the only node owns everything", |site| Box::pin(owns_all(site))),
    ("checkpoints move, and each stands for itself", |site| Box::pin(checkpoints_move(site))),
    ("a later mark of a partition stands", |site| Box::pin(later_mark(site))),
    ("a mark of another tenure is lost and holds up none", |site| Box::pin(lost_marks(site))),
    ("commits side by side mix nothing up", |site| Box::pin(side_by_side(site))),
    ("owned waits for a change", |site| Box::pin(waits(site))),
    ("leaving gives everything up, for the next one", |site| Box::pin(leaves(site))),
    ("one that takes no part owns nothing and tells checkpoints", |site| Box::pin(no_part(site))),
];

/// Runs all of them, each at a site that `make` makes.
pub async fn check<S: Site>(make: impl Fn() -> S) {
    for (name, check) in CHECKS {
        println!("{name}");
        check(&make()).await;
    }
}

fn node(site: &dyn Site) -> Node {
    Node::start(site.ownership(true))
}

/// The same checkpoint for all partitions.
fn everywhere(next: u64) -> BTreeMap<Partition, u64> {
    all_partitions().map(|partition| (partition, next)).collect()
}

async fn owns_all(site: &dyn Site) {
    let node = node(site);
    let owned = node.owns_all().await;
    node.is_member().await;
    assert_eq!(node.owned().await, owned, "and stays so");
    assert_eq!(node.checkpoints().await, BTreeMap::new());
    assert!(!node.has_ended());
}

async fn checkpoints_move(site: &dyn Site) {
    let node = node(site);
    let owned = node.owns_all().await;
    assert_eq!(node.commit(&[]).await, []);
    node.commit_all(1).await;
    let mut expected = everywhere(1);
    assert_eq!(node.checkpoints().await, expected);
    for (next, (partition, tenure)) in (7..).zip(&owned) {
        let mark = Mark { partition: *partition, tenure: *tenure, next };
        assert_eq!(node.commit(&[mark]).await, [Commit::Done]);
        expected.insert(*partition, next);
        assert_eq!(node.checkpoints().await, expected);
    }
    // The largest offset that there is.
    let most = (1 << 48) - 1;
    node.commit_all(most).await;
    assert_eq!(node.checkpoints().await, everywhere(most));
    // A crash takes none of it along.
    drop(node);
    let next = site.ownership(false);
    let found = patient("checkpoints", async || next.checkpoints().await).await;
    assert_eq!(found, everywhere(most));
}

async fn later_mark(site: &dyn Site) {
    let node = node(site);
    let owned = node.owns_all().await;
    let (partition, tenure) = owned.first_key_value().expect("all of them");
    let mark = |next| Mark { partition: *partition, tenure: *tenure, next };
    assert_eq!(node.commit(&[mark(5), mark(9), mark(8)]).await, [Commit::Done; 3]);
    assert_eq!(node.checkpoints().await, [(*partition, 8)].into());
}

async fn lost_marks(site: &dyn Site) {
    let node = node(site);
    let owned = node.owns_all().await;
    let mut mixed = marks(&owned, 3);
    let mut expected = everywhere(3);
    let mut outcomes = vec![Commit::Done; mixed.len()];
    for (at, mark) in mixed.iter_mut().enumerate().step_by(2) {
        mark.tenure = Tenure(mark.tenure.0 + 1_000);
        expected.remove(&mark.partition);
        outcomes[at] = Commit::Lost;
    }
    let nowhere = Partition { topic: Topic::Group, index: PARTITIONS };
    let tenure = owned.values().next().copied().expect("all of them");
    mixed.push(Mark { partition: nowhere, tenure, next: 3 });
    outcomes.push(Commit::Lost);
    assert_eq!(node.commit(&mixed).await, outcomes);
    assert_eq!(node.checkpoints().await, expected);
}

async fn side_by_side(site: &dyn Site) {
    const ROUNDS: u64 = 20;
    let node = node(site);
    let owned = node.owns_all().await;
    let writers: Vec<_> = owned
        .into_iter()
        .map(|(partition, tenure)| {
            let ownership = node.ownership.clone();
            tokio::spawn(async move {
                for next in 1..=ROUNDS {
                    let mark = Mark { partition, tenure, next };
                    let outcomes = ownership.commit(&[mark]).await.expect("a commit");
                    assert_eq!(outcomes, [Commit::Done]);
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("a writer");
    }
    assert_eq!(node.checkpoints().await, everywhere(ROUNDS));
}

async fn waits(site: &dyn Site) {
    let node = node(site);
    let owned = node.owns_all().await;
    let ownership = node.ownership.clone();
    let waiting = tokio::spawn(async move { ownership.owned(&owned).await });
    node.commit_all(1).await;
    assert!(!waiting.is_finished(), "nothing has changed");
    node.ownership.leave().await;
    assert_eq!(waiting.await.expect("no panic"), Owned::new());
}

async fn leaves(site: &dyn Site) {
    let first = node(site);
    let owned = first.owns_all().await;
    first.commit_all(1).await;
    first.ownership.leave().await;
    assert_eq!(first.owned().await, Owned::new());
    assert_eq!(first.commit(&marks(&owned, 2)).await, vec![Commit::Lost; owned.len()]);
    assert_eq!(first.checkpoints().await, everywhere(1));
    // The next one goes on there, while the first one is still to be asked.
    let second = node(site);
    second.owns_all().await;
    assert_eq!(second.checkpoints().await, everywhere(1));
    second.commit_all(3).await;
    assert_eq!(first.owned().await, Owned::new());
    assert_eq!(first.commit(&marks(&owned, 2)).await, vec![Commit::Lost; owned.len()]);
    assert_eq!(first.checkpoints().await, everywhere(3));
    assert!(!first.has_ended(), "it does nothing any more, and does not end");
}

async fn no_part(site: &dyn Site) {
    let one = Node::start(site.ownership(false));
    assert_eq!(one.checkpoints().await, BTreeMap::new());
    let owner = node(site);
    let owned = owner.owns_all().await;
    owner.commit_all(4).await;
    assert_eq!(one.checkpoints().await, everywhere(4));
    assert_eq!(one.owned().await, Owned::new());
    assert_eq!(one.commit(&marks(&owned, 5)).await, vec![Commit::Lost; owned.len()]);
    assert_eq!(one.checkpoints().await, everywhere(4));
    one.ownership.leave().await;
    assert_eq!(owner.owned().await, owned);
    assert_eq!(owner.standing(), Some(Standing::Member));
    assert_eq!(one.standing(), None, "it has nothing to tell");
    assert!(!one.has_ended());
}
