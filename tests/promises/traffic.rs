//! What is sent: records by another producer, broadcasts by the admin API, each with an id that is
//! known; and what was accepted of it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use corecast::base::partition_of_key;
use harness::kafka::JavaProducer;
use harness::node::try_create;
use serde_json::{Value, json};

use crate::real::{PARTITIONS, Place, assert_put_off, value};
use crate::users::{Service, User, lock};

/// Between two rounds of records, and between two broadcasts.
const PACE: Duration = Duration::from_millis(150);
const CREATE_PACE: Duration = Duration::from_millis(100);
/// The longest that a create may take, whatever is away.
const ANSWER: Duration = Duration::from_secs(18);
/// Content of a record of the bulk.
const BULK_BYTES: usize = 300 * 1024;
/// Begins the content of whatever is created.
pub const MADE: &str = "made ";
/// Users who get them: the first ones, who are here.
const BULK_USERS: usize = 6;

/// What must reach its users: one of these of the selected topic, or a group's record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Accepted {
    pub broadcast: u64,
    pub user: Option<String>,
}

/// Writes records as an older producer does.
pub struct Producer {
    pub java: Arc<Mutex<JavaProducer>>,
    place: Place,
    users: Vec<String>,
    pub role: String,
    /// Whether large records are written besides.
    is_heavy: AtomicBool,
    posted: Mutex<BTreeSet<Accepted>>,
}

/// How creates were answered.
#[derive(Clone, Default)]
pub struct Made {
    pub accepted: BTreeSet<Accepted>,
    /// Contents of those that exist and are published later, because the log was away.
    pub owed: Vec<String>,
    /// Why creates were put off.
    pub refused: Vec<String>,
    pub unanswered: usize,
    /// All of these together.
    pub answers: usize,
    pub slowest: Duration,
}

/// Both kinds, until it is ended.
pub struct Traffic {
    pub producer: Arc<Producer>,
    made: Arc<Mutex<Made>>,
    writing: Job,
    creating: Job,
}

/// A thread that works until it is told to end.
struct Job {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Producer {
    /// For these users, of whom some have the role.
    pub fn new(
        java: Arc<Mutex<JavaProducer>>,
        place: Place,
        users: &[Arc<User>],
        role: &str,
    ) -> Self {
        let users = users.iter().map(|user| user.name.clone()).collect();
        let (is_heavy, posted) = Default::default();
        Self { java, place, users, role: role.to_owned(), is_heavy, posted }
    }

    /// Something in each lane of every user; the number of the first record.
    pub fn mark(&self) -> u64 {
        let everybody = json!({"targetType": "ALL"});
        let first = (0..PARTITIONS).map(|partition| self.say(partition, &everybody)).min();
        for user in &self.users {
            self.tell(user, 0);
        }
        first.expect("there are partitions")
    }

    /// So many records as fast as may be.
    pub fn burst(&self, records: usize) {
        (0..records / 2).for_each(|round| self.round(round));
    }

    /// What is no event, to every partition of both topics; how many records.
    pub fn poison(&self) -> usize {
        let deep = "[".repeat(20_000);
        let cut = value(Some("x"), 1, "cut", &json!({}));
        let values = [
            "no JSON",
            "",
            "~",
            "{}",
            "0xfffe00c328",
            "{\"broadcastId\":\"x\"}",
            &deep,
            &cut[..cut.len() - 1],
        ];
        for topic in [&self.place.selected, &self.place.group] {
            for partition in 0..PARTITIONS {
                values
                    .iter()
                    .for_each(|value| self.post(&mut lock(&self.java), topic, partition, value));
            }
        }
        values.len() * 2 * usize::from(PARTITIONS)
    }

    /// From now on, or no longer: large records for some who are here.
    pub fn set_heavy(&self, is_heavy: bool) {
        self.is_heavy.store(is_heavy, Ordering::Relaxed);
    }

    /// Waits until all that was written is in the log: it is accepted.
    pub fn settle(&self) -> BTreeSet<Accepted> {
        lock(&self.java).say(&["settle"]);
        lock(&self.posted).clone()
    }

    /// One record of each topic.
    fn round(&self, round: usize) {
        let audience = match round / usize::from(PARTITIONS) % 2 {
            0 => json!({"targetType": "ALL"}),
            _ => json!({"targetType": "ROLE", "targetIds": [self.role]}),
        };
        let partition = u16::try_from(round % usize::from(PARTITIONS)).expect("few");
        self.say(partition, &audience);
        self.tell(&self.users[round % self.users.len()], 0);
        if self.is_heavy.load(Ordering::Relaxed) {
            self.tell(&self.users[round % BULK_USERS], BULK_BYTES);
        }
    }

    fn say(&self, partition: u16, audience: &Value) -> u64 {
        let content = format!("flow {partition}");
        self.write(&self.place.group, partition, None, &content, audience)
    }

    fn tell(&self, user: &str, padding: usize) -> u64 {
        let partition = partition_of_key(user.as_bytes(), PARTITIONS);
        let content = format!("flow of his own {}", "x".repeat(padding));
        self.write(&self.place.selected, partition, Some(user), &content, &json!({}))
    }

    /// Numbers rise with the offsets of each partition.
    fn write(
        &self,
        topic: &str,
        partition: u16,
        user: Option<&str>,
        content: &str,
        more: &Value,
    ) -> u64 {
        let mut java = lock(&self.java);
        let broadcast = draw_broadcast();
        self.post(&mut java, topic, partition, &value(user, broadcast, content, more));
        lock(&self.posted).insert(Accepted { broadcast, user: user.map(str::to_owned) });
        broadcast
    }

    fn post(&self, java: &mut JavaProducer, topic: &str, partition: u16, value: &str) {
        java.say(&["post", "flow", topic, &partition.to_string(), "k", value]);
    }
}

/// An id that no other broadcast has: the stories share a store. They rise.
pub fn draw_broadcast() -> u64 {
    static DRAWN: AtomicU64 = AtomicU64::new(1);
    DRAWN.fetch_add(1, Ordering::Relaxed)
}

impl Traffic {
    pub fn start(producer: Producer, service: Arc<Service>) -> Self {
        let (producer, made) = (Arc::new(producer), Arc::<Mutex<Made>>::default());
        let writing = Job::start({
            let producer = producer.clone();
            move |stop| {
                let rounds = 0..;
                rounds.take_while(|_| goes_on(stop, PACE)).for_each(|round| producer.round(round));
            }
        });
        let creating = Job::start({
            let (producer, made) = (producer.clone(), made.clone());
            move |stop| create(&producer, &service, &made, stop)
        });
        Self { producer, made, writing, creating }
    }

    pub fn made(&self) -> Made {
        lock(&self.made).clone()
    }

    /// Panics if it has ended by itself.
    pub fn check(&self) {
        let has_ended = self.writing.thread.is_finished() || self.creating.thread.is_finished();
        assert!(!has_ended, "the traffic has ended, see above");
    }

    pub fn end(self) -> (Arc<Producer>, Made) {
        self.creating.end();
        self.writing.end();
        (self.producer, lock(&self.made).clone())
    }
}

impl Job {
    fn start(work: impl FnOnce(&mpsc::Receiver<()>) + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel();
        Self { stop, thread: std::thread::spawn(move || work(&stopped)) }
    }

    fn end(self) {
        drop(self.stop);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}

/// Whether the job goes on; after its pace.
fn goes_on(stop: &mpsc::Receiver<()>, pace: Duration) -> bool {
    matches!(stop.recv_timeout(pace), Err(RecvTimeoutError::Timeout))
}

/// Creates broadcasts to two users, to the role and to everybody in turn, at each node in turn.
/// Whatever is refused must be so for now, and soon.
fn create(producer: &Producer, service: &Service, made: &Mutex<Made>, stop: &mpsc::Receiver<()>) {
    for turn in 0.. {
        if !goes_on(stop, CREATE_PACE) {
            return;
        }
        let users =
            [turn, turn + 1].map(|user| producer.users[user % producer.users.len()].clone());
        let (target, ids, users) = match turn % 5 {
            0 => ("ROLE", vec![producer.role.clone()], None),
            1 => ("ALL", Vec::new(), None),
            _ => ("SELECTED", users.to_vec(), Some(users)),
        };
        let content = format!("{MADE}{turn} for {}", producer.role);
        let body = json!({"content": content, "targetType": target, "targetIds": ids});
        let began = Instant::now();
        let answer = try_create(service.node(turn).admin, &body);
        let took = began.elapsed();
        assert!(took < ANSWER, "{took:?}: {answer:?}");
        let mut made = lock(made);
        made.answers += 1;
        made.slowest = made.slowest.max(took);
        match answer {
            None => made.unanswered += 1,
            Some(answer) if answer.status == 200 => {
                let broadcast = answer.json()["id"].as_u64().expect("an id");
                let of = |user| Accepted { broadcast, user };
                match users {
                    Some(users) => made.accepted.extend(users.map(|user| of(Some(user)))),
                    None => drop(made.accepted.insert(of(None))),
                }
            }
            Some(answer) => {
                assert_put_off(&answer, "away");
                let reason = answer.error(503);
                if reason.starts_with("log") {
                    made.owed.push(content);
                }
                made.refused.push(reason);
            }
        }
    }
}
