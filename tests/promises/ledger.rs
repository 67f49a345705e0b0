//! What every user was to get, which is what the log holds for him, and what he did get.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use harness::kafka::JavaProducer;
use harness::wrong::Wrong;
use serde_json::Value;

use crate::real::Place;
use crate::traffic::{Accepted, MADE, Made};
use crate::users::{Got, Message, User};

/// The events of the log, as Kafka's own consumer reads them.
#[derive(Default)]
pub struct Ledger {
    /// By topic and partition, in order, each event at its first place.
    lanes: BTreeMap<(String, u16), Vec<Entry>>,
}

struct Entry {
    audience: Audience,
    message: Message,
}

enum Audience {
    Everybody,
    Role(BTreeSet<String>),
    User(String),
}

impl Ledger {
    pub fn read(java: &mut JavaProducer, place: &Place) -> Self {
        let mut ledger = Self::default();
        let mut events = HashSet::new();
        for topic in [&place.selected, &place.group] {
            for (partition, value) in java.dump(topic) {
                // A poisonous one says nothing.
                let Some((event, entry)) = read(&value) else { continue };
                if events.insert(event) {
                    ledger.lanes.entry((topic.clone(), partition)).or_default().push(entry);
                }
            }
        }
        ledger
    }

    pub fn events(&self) -> usize {
        self.lanes.values().map(Vec::len).sum()
    }

    /// What was accepted is there; what was created is there once, and nothing else.
    pub fn assert_holds(&self, accepted: &BTreeSet<Accepted>, made: &Made, role: &str) {
        let entries = || self.lanes.values().flatten();
        let events: BTreeSet<Accepted> = entries().map(Entry::accepted).collect();
        let lost: Vec<_> = accepted.difference(&events).collect();
        assert!(lost.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), accepted.len());
        // What an earlier story's nodes have left in the outbox is published by those of this one.
        let of_this_story = format!(" for {role}");
        let mut created: HashMap<&str, u64> = HashMap::new();
        for Message { broadcast, content } in entries().map(|entry| &entry.message) {
            if content.starts_with(MADE) && content.ends_with(&of_this_story) {
                let first = *created.entry(content).or_insert(*broadcast);
                assert_eq!(*broadcast, first, "{content} was created twice");
            }
        }
        assert!(created.len() <= made.answers, "{} of {}", created.len(), made.answers);
    }

    /// Whether what exists, and could not be published while the log was away, is there by now.
    pub fn holds_owed(&self, owed: &[String]) -> bool {
        let entries = self.lanes.values().flatten();
        let contents: HashSet<&str> = entries.map(|entry| &*entry.message.content).collect();
        owed.iter().all(|content| contents.contains(&**content))
    }

    pub fn judge(&self, user: &User, got: &Got) -> Wrong {
        let mut expected: HashMap<u64, (usize, usize, &Message)> = HashMap::new();
        for (lane, entries) in self.lanes.values().enumerate() {
            for (at, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.is_for(user)) {
                expected.insert(entry.message.broadcast, (lane, at, &entry.message));
            }
        }
        let mut wrong = Wrong { gaps: got.gaps, ..Wrong::default() };
        let mut seen = HashSet::new();
        let mut reached: HashMap<usize, usize> = HashMap::new();
        for message in &got.messages {
            match expected.get(&message.broadcast) {
                Some((lane, at, known)) if *known == message => {
                    wrong.twice += usize::from(!seen.insert(message.broadcast));
                    let reached = reached.entry(*lane).or_default();
                    wrong.late += usize::from(at < reached);
                    *reached = (*at).max(*reached);
                }
                _ => wrong.strange += 1,
            }
        }
        wrong.missed = expected.len() - seen.len();
        wrong
    }
}

impl Entry {
    fn accepted(&self) -> Accepted {
        let user = match &self.audience {
            Audience::User(user) => Some(user.clone()),
            Audience::Everybody | Audience::Role(_) => None,
        };
        Accepted { broadcast: self.message.broadcast, user }
    }

    fn is_for(&self, user: &User) -> bool {
        match &self.audience {
            Audience::Everybody => true,
            Audience::Role(roles) => user.roles.iter().any(|role| roles.contains(role)),
            Audience::User(name) => *name == user.name,
        }
    }
}

/// An event's id, and what it says to whom. `None`: it is none.
fn read(value: &str) -> Option<(String, Entry)> {
    let value: Value = serde_json::from_str(value).ok()?;
    let broadcast = value["broadcastId"].as_u64()?;
    let text = |name: &str| value[name].as_str().map(str::to_owned);
    let names = |ids: &Value| {
        let ids = ids.as_array().into_iter().flatten();
        ids.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let audience = match (text("userId"), value["targetType"].as_str()) {
        (Some(user), _) => Audience::User(user),
        (None, Some("ALL")) => Audience::Everybody,
        (None, Some("ROLE")) => Audience::Role(names(&value["targetIds"])),
        other => panic!("nobody here writes such a record: {other:?}"),
    };
    let message = Message { broadcast, content: text("message")? };
    Some((text("eventId")?, Entry { audience, message }))
}

/// The judge sees each kind of wrong.
#[test]
fn the_ledger_tells_what_is_missed_twice_strange_and_late() {
    let message =
        |broadcast: u64| Message { broadcast, content: format!("content of {broadcast}") };
    let entry = |audience, broadcast| Entry { audience, message: message(broadcast) };
    let role = |name: &str| Audience::Role(BTreeSet::from([name.to_owned()]));
    let mut ledger = Ledger::default();
    let group =
        [(Audience::Everybody, 1), (role("cook"), 2), (role("guest"), 3), (Audience::Everybody, 4)];
    let group = group.into_iter().map(|(audience, broadcast)| entry(audience, broadcast));
    ledger.lanes.insert(("group".to_owned(), 0), group.collect());
    let own = [("ann", 5), ("ben", 6), ("ann", 7)];
    let own = own.map(|(user, broadcast)| entry(Audience::User(user.to_owned()), broadcast));
    ledger.lanes.insert(("selected".to_owned(), 0), own.into());
    let ann = User::new(0, "ann".to_owned(), vec!["cook".to_owned()], Some(1));
    let judge = |broadcasts: &[u64]| {
        let messages = broadcasts.iter().map(|broadcast| message(*broadcast)).collect();
        ledger.judge(&ann, &Got { messages, gaps: 0 })
    };
    let right = Wrong::default();
    assert_eq!(judge(&[1, 2, 4, 5, 7]), right);
    assert_eq!(judge(&[5, 1, 7, 2, 4]), right, "there is no order between partitions");
    assert_eq!(judge(&[1, 2, 4, 7]), Wrong { missed: 1, ..right });
    assert_eq!(judge(&[1, 2, 4, 4, 5, 7]), Wrong { twice: 1, ..right });
    assert_eq!(judge(&[1, 2, 3, 4, 5, 6, 7, 8]), Wrong { strange: 3, ..right });
    assert_eq!(judge(&[2, 1, 4, 5, 7]), Wrong { late: 1, ..right });
    let other = Message { content: "another".to_owned(), ..message(1) };
    let got =
        Got { messages: vec![other, message(2), message(4), message(5), message(7)], gaps: 1 };
    assert_eq!(ledger.judge(&ann, &got), Wrong { missed: 1, strange: 1, gaps: 1, ..right });
}
