//! Log and store as the configuration says, and what it takes to keep them: opened before the
//! listeners say anything, watched until the node ends.

use std::path::Path;
use std::sync::{Arc, mpsc};

use super::{BootError, Ending, say_if_ready};
use crate::control::Threads;
use crate::ingest::kafka::{KafkaLog, KafkaOwnership};
use crate::ops::config::{Config, LogConfig, StoreConfig};
use crate::ops::health::{Health, Part};
use crate::ports::{
    Audit, Clock, ControlTopic, DeadLetterRows, Endings, Inbox, Log, Ownership, Parking, Store,
};
use crate::store::embedded::{Embedded, EmbeddedOptions, LoneControl};
use crate::store::scylla::{Progress, ScyllaStore};

pub(super) struct Backends {
    pub log: Arc<dyn Log>,
    pub ownership: Arc<dyn Ownership>,
    pub control: Arc<dyn ControlTopic>,
    pub store: Arc<dyn Store>,
    pub endings: Arc<dyn Endings>,
    pub inbox: Arc<dyn Inbox>,
    pub parking: Arc<dyn Parking>,
    pub dead_letters: Arc<dyn DeadLetterRows>,
    pub audit: Arc<dyn Audit>,
    /// No other node can use the store.
    pub is_alone: bool,
    embedded: Option<Embedded>,
    scylla: Option<Arc<ScyllaStore>>,
}

/// One log, by all of its ports.
type LogParts = (Arc<dyn Log>, Arc<dyn Ownership>, Arc<dyn ControlTopic>);

/// One store, by all of its ports.
struct Stores {
    store: Arc<dyn Store>,
    endings: Arc<dyn Endings>,
    inbox: Arc<dyn Inbox>,
    parking: Arc<dyn Parking>,
    dead_letters: Arc<dyn DeadLetterRows>,
    audit: Arc<dyn Audit>,
}

impl Stores {
    fn of<S: Store + Endings + Inbox + Parking + DeadLetterRows + Audit + 'static>(
        one: Arc<S>,
    ) -> Self {
        Self {
            store: one.clone(),
            endings: one.clone(),
            inbox: one.clone(),
            parking: one.clone(),
            dead_letters: one.clone(),
            audit: one,
        }
    }
}

impl Backends {
    /// Opens what is embedded; what is elsewhere may be away, and is waited for later.
    pub fn open(config: &Config, clock: &Arc<dyn Clock>) -> Result<Self, BootError> {
        let log_is_embedded = matches!(config.log, LogConfig::Embedded { .. });
        let store_is_embedded = matches!(config.store, StoreConfig::Embedded);
        let embedded = (log_is_embedded || store_is_embedded)
            .then(|| open_embedded(&config.data_dir, config.log.partitions(), clock.clone()))
            .transpose()?;
        if log_is_embedded && !store_is_embedded {
            tracing::warn!(
                "the log is this node's alone: no other node may use its keyspace, because each \
                 publishes what it finds there; nodes that share it need log.kind = \"kafka\""
            );
        }
        let (log, ownership, control): LogParts = match (&config.log, &embedded) {
            (LogConfig::Kafka { options, groups }, _) => {
                let (options, groups) = ((**options).clone(), groups.clone());
                let ownership = KafkaOwnership::new(options.clone(), groups, config.is_owner)?;
                let log = Arc::new(KafkaLog::new(options)?);
                (log.clone(), Arc::new(ownership), log)
            }
            (LogConfig::Embedded { .. }, Some(embedded)) => {
                let control = Arc::new(LoneControl::default());
                (embedded.log(), embedded.ownership(config.is_owner), control)
            }
            (LogConfig::Embedded { .. }, None) => unreachable!("it was opened above"),
        };
        let scylla = match &config.store {
            StoreConfig::Embedded => None,
            StoreConfig::Scylla(options) => {
                let node = config.node_id.clone();
                Some(Arc::new(ScyllaStore::new(options.clone(), node, clock.clone())))
            }
        };
        let stores = match (&scylla, &embedded) {
            (Some(scylla), _) => Stores::of(scylla.clone()),
            (None, Some(embedded)) => Stores::of(embedded.stores()),
            (None, None) => unreachable!("it was opened above"),
        };
        let Stores { store, endings, inbox, parking, dead_letters, audit } = stores;
        Ok(Self {
            log,
            ownership,
            control,
            store,
            endings,
            inbox,
            parking,
            dead_letters,
            audit,
            is_alone: scylla.is_none(),
            embedded,
            scylla,
        })
    }

    /// Tells health of the store, from now on; the log is told of by who reads it.
    pub fn watch(&self, threads: &Threads, health: &Health, endings: &mpsc::Sender<Ending>) {
        match &self.scylla {
            Some(scylla) => watch_scylla(threads, scylla.clone(), health.clone(), endings.clone()),
            None => say_if_ready(health.found(Part::Store)),
        }
        if let Some(embedded) = &self.embedded {
            watch_embedded(threads, embedded, health.clone());
        }
    }
}

fn open_embedded(
    data_dir: &Path,
    partitions: u16,
    clock: Arc<dyn Clock>,
) -> Result<Embedded, BootError> {
    tracing::info!(directory = %data_dir.display(), "opening the data directory");
    let options = EmbeddedOptions { data_dir: data_dir.to_owned(), partitions };
    Ok(Embedded::open(&options, clock)?)
}

/// A store that has failed stays so: no more creates, and no readiness, until the next start.
fn watch_embedded(threads: &Threads, embedded: &Embedded, health: Health) {
    let failure = embedded.failure();
    threads.spawn(async move {
        let reason = failure.await;
        tracing::error!(reason, "the store takes nothing any more");
        health.lost(Part::Store, format!("takes nothing any more, mend and start again: {reason}"));
    });
}

fn watch_scylla(
    threads: &Threads,
    scylla: Arc<ScyllaStore>,
    health: Health,
    endings: mpsc::Sender<Ending>,
) {
    threads.spawn(async move {
        let ended = scylla.run(|progress| match progress {
            Progress::Serving => say_if_ready(health.found(Part::Store)),
            Progress::Away(reason) | Progress::Failed(reason) => health.lost(Part::Store, reason),
        });
        if let Err(error) = ended.await {
            let _ = endings.send(Ending::Part(format!("the store can't be used: {error}")));
        }
    });
}
