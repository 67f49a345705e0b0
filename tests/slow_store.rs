//! A store that is slow: what it takes to tell a user what is kept for him may be more than the
//! time that he has. He is put off then, but not for ever.

mod fakes;
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use corecast::base::{EpochMillis, Partition, Position, Topic, UserId};
use corecast::control::{KeptParts, KeptStore, inboxes};
use corecast::domain::Served;
use corecast::lane::Ask;
use corecast::ports::{
    Commit, GroupRow, GroupWhat, Inbox, Mark, MovedRecord, Owned, Place, StoreError, SystemClock,
};
use corecast::store::embedded::{Embedded, EmbeddedOptions};
use fakes::{Call, Gated};
use store::{at_once, broadcast, id_at, now};

/// Group broadcasts that are kept.
const BROADCASTS: u64 = 1_500;
/// What reading each of their contents takes, and what a user waits: no time for all of them.
const CONTENT: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_millis(500);

/// Keeps what is for everybody, as an owner does.
async fn keep_broadcasts(embedded: &Embedded) {
    let partition = Partition { topic: Topic::Group, index: 0 };
    let log = embedded.log().shape().await.expect("embedded").identity;
    let row = |offset: u64| GroupRow {
        broadcast: id_at(now(), offset),
        what: GroupWhat::Created,
        place: Place { log, position: Position { partition, offset }, appended_at: now() },
        keep_until: EpochMillis(now().0 + 3_600_000),
    };
    let rows: Vec<GroupRow> = (0..BROADCASTS).map(row).collect();
    let store = embedded.store();
    at_once(&rows, |row| {
        let (store, content) = (store.clone(), broadcast(row.broadcast));
        async move { store.claim_broadcast(&content).await.expect("embedded") }
    })
    .await;
    embedded.inbox().write_group(&rows).await.expect("embedded");
    // The log has been so far; what its records say is of no matter here.
    let record = MovedRecord { to: partition, key: None, value: None, headers: Vec::new() };
    let records = vec![record; rows.len()];
    embedded.log().append_moved(records).await.expect("embedded");
    let ownership = embedded.ownership(true);
    let taking_part = ownership.clone();
    tokio::spawn(async move { taking_part.run(&|_| ()).await });
    let owned = ownership.owned(&Owned::new()).await;
    let mark = Mark { partition, tenure: owned[&partition], next: BROADCASTS };
    assert_eq!(ownership.commit(&[mark]).await.expect("embedded"), [Commit::Done]);
}

/// A store that holds them.
async fn embedded() -> (Embedded, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = EmbeddedOptions { data_dir: folder.path().to_owned(), partitions: 1 };
    let embedded = Embedded::open(&options, Arc::new(SystemClock)).expect("opens");
    keep_broadcasts(&embedded).await;
    (embedded, folder)
}

fn kept(embedded: &Embedded, inbox: Arc<dyn Inbox>) -> KeptStore {
    KeptStore::new(KeptParts {
        log: embedded.log(),
        ownership: embedded.ownership(true),
        inbox,
        clock: Arc::new(SystemClock),
        retention: Duration::from_secs(3_600),
        messages_max: 1_000,
    })
}

/// A node that has just started. Load balancers send it nobody as long as it is not ready.
#[tokio::test]
async fn a_node_is_ready_once_it_has_read_what_all_share() {
    let (embedded, _folder) = embedded().await;
    let (read, failures) = (Arc::<AtomicUsize>::default(), Arc::new(AtomicUsize::new(2)));
    let count = read.clone();
    let failing = Gated::new(embedded.inbox(), move |call| {
        let (read, failures) = (count.clone(), failures.clone());
        async move {
            let Call::Contents(contents) = call else { return Ok(()) };
            tokio::time::sleep(CONTENT).await;
            if read.load(Ordering::Relaxed) > 0
                && failures
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok()
            {
                return Err(StoreError::Away("as told".to_owned()));
            }
            read.fetch_add(contents, Ordering::Relaxed);
            Ok(())
        }
    });
    let (desk, inboxes) = inboxes(kept(&embedded, failing), Vec::new(), Arc::default());
    let (warmed, is_warm) = tokio::sync::oneshot::channel();
    let read_by_then = read.clone();
    let running = tokio::spawn(inboxes.run(move || {
        warmed.send(read_by_then.load(Ordering::Relaxed)).expect("somebody waits");
    }));
    let found =
        tokio::time::timeout(Duration::from_secs(20), is_warm).await.expect("it gets there");
    assert_eq!(found.expect("it is said"), usize::try_from(BROADCASTS).expect("few"));
    drop(desk);
    running.await.expect("it ends with its desk");
}

#[tokio::test]
async fn who_asks_again_and_again_is_told_what_is_kept_for_him() {
    let (embedded, _folder) = embedded().await;
    let slow = Gated::new(embedded.inbox(), |call| async move {
        if let Call::Contents(count) = call {
            tokio::time::sleep(CONTENT * u32::try_from(count).expect("few")).await;
        }
        Ok(())
    });
    let kept = kept(&embedded, slow);
    let user = UserId::new("ann").expect("a user id");
    let shape = embedded.log().shape().await.expect("it is embedded");
    let read = Served::nothing(&shape, &user);
    let ask = Ask {
        shard: 0,
        key: 0,
        user,
        members: Vec::new(),
        ring: read.clone(),
        read,
        presented: None,
    };
    // Each time what is under way is given up.
    let mut asked = 0;
    let backlog = loop {
        asked += 1;
        assert!(asked < 20, "put off for ever");
        if let Ok(found) = tokio::time::timeout(PATIENCE, kept.backlog(&ask)).await {
            break found.expect("it is embedded");
        }
    };
    println!("told at the {asked}th time");
    assert!(asked > 1, "it was not slow");
    drop(backlog);
}
