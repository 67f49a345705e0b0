//! A store that is slow: what it takes to tell a user what is kept for him may be more than the
//! time that he has. He is put off then, but not for ever.

mod store;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use corecast::base::{BroadcastId, EpochMillis, LogIdentity, Partition, Position, Topic, UserId};
use corecast::control::{KeptParts, KeptStore};
use corecast::lane::Ask;
use corecast::ports::{
    Commit, Content, GroupRow, Inbox, InboxRow, InboxWrite, Mark, Owned, Place, StoreError,
    SystemClock,
};
use corecast::store::embedded::{Embedded, EmbeddedOptions};
use store::{at_once, broadcast, id_at, now};

/// Group broadcasts that are kept.
const BROADCASTS: u64 = 1_500;
/// What reading each of their contents takes, and what a user waits: no time for all of them.
const CONTENT: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_millis(500);

/// An inbox whose contents take their time.
struct Slow(Arc<dyn Inbox>);

#[async_trait]
impl Inbox for Slow {
    async fn contents(&self, ids: &[BroadcastId]) -> Result<Vec<Option<Content>>, StoreError> {
        tokio::time::sleep(CONTENT * u32::try_from(ids.len()).expect("few")).await;
        self.0.contents(ids).await
    }

    async fn write_inbox(&self, writes: &[InboxWrite]) -> Result<(), StoreError> {
        self.0.write_inbox(writes).await
    }

    async fn inbox(
        &self,
        user: &UserId,
        after: Option<BroadcastId>,
        limit: usize,
    ) -> Result<Vec<InboxRow>, StoreError> {
        self.0.inbox(user, after, limit).await
    }

    async fn write_group(&self, rows: &[GroupRow]) -> Result<(), StoreError> {
        self.0.write_group(rows).await
    }

    async fn group(
        &self,
        log: LogIdentity,
        partition: u16,
        from: u64,
        limit: usize,
    ) -> Result<Vec<GroupRow>, StoreError> {
        self.0.group(log, partition, from, limit).await
    }

    async fn write_cursor(
        &self,
        user: &UserId,
        log: LogIdentity,
        next: &[(Partition, u64)],
    ) -> Result<(), StoreError> {
        self.0.write_cursor(user, log, next).await
    }

    async fn cursor(
        &self,
        user: &UserId,
        log: LogIdentity,
    ) -> Result<Vec<(Partition, u64)>, StoreError> {
        self.0.cursor(user, log).await
    }
}

/// Keeps what is for everybody, as an owner does.
async fn keep_broadcasts(embedded: &Embedded) {
    let partition = Partition { topic: Topic::Group, index: 0 };
    let log = embedded.log().shape().await.expect("embedded").identity;
    let row = |offset: u64| GroupRow {
        broadcast: id_at(now(), offset),
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
    let ownership = embedded.ownership(true);
    let taking_part = ownership.clone();
    tokio::spawn(async move { taking_part.run(&|_| ()).await });
    let owned = ownership.owned(&Owned::new()).await;
    let mark = Mark { partition, tenure: owned[&partition], next: BROADCASTS };
    assert_eq!(ownership.commit(&[mark]).await.expect("embedded"), [Commit::Done]);
}

#[tokio::test]
async fn who_asks_again_and_again_is_told_what_is_kept_for_him() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = EmbeddedOptions { data_dir: folder.path().to_owned(), partitions: 1 };
    let embedded = Embedded::open(&options, Arc::new(SystemClock)).expect("opens");
    keep_broadcasts(&embedded).await;
    let kept = KeptStore::new(KeptParts {
        log: embedded.log(),
        ownership: embedded.ownership(true),
        inbox: Arc::new(Slow(embedded.inbox())),
        clock: Arc::new(SystemClock),
        retention: Duration::from_secs(3_600),
        messages_max: 1_000,
    });
    let user = UserId::new("ann").expect("a user id");
    let ask = Ask { shard: 0, key: 0, user, members: Vec::new(), progress: None, replaced: None };
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
