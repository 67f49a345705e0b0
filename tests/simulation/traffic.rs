//! What producers append: messages for one, for some and for all, records of older producers,
//! records that stand in the log twice, and records that nobody can serve.

use bytes::Bytes;
use corecast::base::{
    BroadcastId, EpochMillis, EventType, Partition, Position, Priority, TargetType, Topic, UserId,
};
use corecast::domain::{Broadcast, Target};
use corecast::limits::log::REPEAT_RECORDS;
use corecast::ports::MovedRecord;
use corecast::wire::record::{OutgoingRecord, event_id};

use crate::records::{Names, Sent, Waiting};
use crate::sky::SHAPE;
use crate::world::{ROLES, USERS, World};

/// One broadcast that is to be published.
struct Draft {
    broadcast: Broadcast,
    is_older: bool,
}

impl World {
    pub fn append(&mut self) {
        if self.is_log_out() {
            return;
        }
        // What our own nodes publish they have put into the store before.
        let is_away = self.store.lock().is_away();
        match self.random.below(18) {
            0..=7 | 16 if is_away => self.append_older(),
            0..=5 => {
                let mut users: Vec<usize> =
                    (0..=self.random.below(3)).map(|_| self.random.below(USERS)).collect();
                users.sort_unstable();
                users.dedup();
                let draft = self.draft(TargetType::Selected, Vec::new(), false);
                for user in users {
                    let user = UserId::new(&format!("user-{user}")).expect("a user id");
                    let index = SHAPE.partition_of_user(user.as_str());
                    let partition = Partition { topic: Topic::Selected, index };
                    self.publish(&draft, partition, Names::User(user));
                }
            }
            6 => self.append_older(),
            7 => {
                // For one user, in the topic of the groups.
                let user = UserId::new(&format!("user-{}", self.random.below(USERS)));
                let draft = self.draft(TargetType::Selected, Vec::new(), false);
                let partition = self.group_partition();
                self.publish(&draft, partition, Names::User(user.expect("a user id")));
            }
            8..=10 => {
                let names = vec![ROLES[self.random.below(4)], ROLES[self.random.below(4)]];
                let ids = names.iter().map(|name| (*name).to_owned()).collect();
                let draft = self.draft(TargetType::Role, ids, false);
                let partition = self.group_partition();
                self.publish(&draft, partition, Names::Roles(names));
            }
            11..=12 => {
                let draft = self.draft(TargetType::All, Vec::new(), false);
                let partition = self.group_partition();
                self.publish(&draft, partition, Names::Everyone);
            }
            13..=14 => self.repeat(),
            15 => {
                let user = UserId::new(&format!("user-{}", self.random.below(USERS)));
                let user = user.expect("a user id");
                let own = SHAPE.partition_of_user(user.as_str());
                let others = SHAPE.selected_partitions - 1;
                let step = 1 + self.random.below(usize::from(others)) as u16;
                let index = (own + step) % SHAPE.selected_partitions;
                let draft = self.draft(TargetType::Selected, Vec::new(), true);
                let partition = Partition { topic: Topic::Selected, index };
                self.seen.note("records parked");
                self.publish_elsewhere(&draft, partition, Names::User(user));
            }
            16 => {
                let name = ROLES[self.random.below(4)];
                let draft = self.draft(TargetType::Role, vec![name.to_owned()], false);
                let partition = self.group_partition();
                self.seen.note("older records without an audience");
                self.publish_elsewhere(&draft, partition, Names::Roles(vec![name]));
            }
            _ => {
                let partitions: Vec<Partition> = SHAPE.all_partitions().collect();
                let partition = partitions[self.random.below(partitions.len())];
                self.append_unserved(partition);
            }
        }
    }

    fn append_older(&mut self) {
        let user = UserId::new(&format!("user-{}", self.random.below(USERS)));
        let user = user.expect("a user id");
        let index = SHAPE.partition_of_user(user.as_str());
        let draft = self.draft(TargetType::Selected, Vec::new(), true);
        let partition = Partition { topic: Topic::Selected, index };
        self.publish(&draft, partition, Names::User(user));
    }

    fn group_partition(&mut self) -> Partition {
        let index = self.random.below(usize::from(SHAPE.group_partitions)) as u16;
        Partition { topic: Topic::Group, index }
    }

    /// A broadcast, kept before it is published, but for an older producer's.
    fn draft(&mut self, r#type: TargetType, ids: Vec<String>, is_older: bool) -> Draft {
        self.broadcasts += 1;
        // Ids say nothing of the order.
        let number = self.random.next() % 1_000_000 * 100_000 + self.broadcasts;
        let id = BroadcastId::new(number).expect("small");
        let expires_at = (self.faults.expiry && self.random.one_in(4)).then(|| {
            let longest = [3_000, 60_000, 400_000][self.random.below(3)];
            EpochMillis(self.wall().0 + self.random.next() % longest)
        });
        let padding = "x".repeat(self.random.below(2_000));
        let broadcast = Broadcast {
            id,
            correlation_id: "c".to_owned(),
            sender_id: None,
            sender_name: None,
            content: format!("{number} {padding}"),
            target: Target { r#type, ids },
            priority: Priority::Normal,
            category: None,
            created_at: self.wall(),
            scheduled_at: None,
            expires_at,
            fire_and_forget: self.random.one_in(10),
        };
        let mut shelves = self.store.lock();
        // Else it is another producer's, of which the record says all.
        if !is_older && !shelves.is_away() {
            shelves.put_content(broadcast.clone());
        }
        drop(shelves);
        Draft { broadcast, is_older }
    }

    fn record_of(&self, draft: &Draft, names: &Names, names_audience: bool) -> Bytes {
        let broadcast = &draft.broadcast;
        let user = names.user().map(UserId::as_str);
        let is_group = broadcast.target.r#type != TargetType::Selected;
        let value = OutgoingRecord {
            event_id: event_id(broadcast.id, user, EventType::Created),
            broadcast_id: broadcast.id,
            user_id: user,
            event_type: EventType::Created,
            pod_id: "simulated",
            timestamp: self.wall(),
            correlation_id: Some(&broadcast.correlation_id),
            message: Some(&broadcast.content),
            error_details: None,
            fire_and_forget: broadcast.fire_and_forget,
            target_type: names_audience.then_some(broadcast.target.r#type),
            target_ids: (is_group && names_audience).then_some(&broadcast.target.ids),
            sender_id: None,
            sender_name: None,
            priority: None,
            category: None,
            created_at: Some(broadcast.created_at),
            scheduled_at: None,
            expires_at: broadcast.expires_at,
            simulate_failure: false,
            attempt: 0,
            after: None,
        };
        Bytes::from(value.to_json())
    }

    fn publish(&mut self, draft: &Draft, partition: Partition, names: Names) {
        let value = self.record_of(draft, &names, !draft.is_older);
        let (position, is_served) = self.append_to(partition, value);
        assert!(is_served, "seed {}: {position:?} is to be served", self.seed);
        self.accept(position, sent_of(draft, names));
    }

    /// Where nobody serves it: it is to be published again.
    fn publish_elsewhere(&mut self, draft: &Draft, partition: Partition, names: Names) {
        let value = self.record_of(draft, &names, false);
        let (position, is_served) = self.append_to(partition, value);
        assert!(!is_served, "seed {}: {position:?} can't be served there", self.seed);
        let user = names.user().map(UserId::as_str);
        let event = event_id(draft.broadcast.id, user, EventType::Created);
        self.truth.wait(Waiting { sent: sent_of(draft, names), position, event });
    }

    /// What an owner has published again stands in the log.
    pub fn append_again(&mut self, record: MovedRecord) {
        let is_served = matches!(record.to.topic, Topic::Selected | Topic::Group);
        assert!(is_served, "seed {}: a dead letter, of nothing that is bad", self.seed);
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Says {
            broadcast_id: BroadcastId,
            user_id: Option<String>,
        }
        let value = record.value.expect("a record");
        let says: Says = serde_json::from_slice(&value).expect("JSON");
        let user = says.user_id.map(|user| UserId::new(&user).expect("a user id"));
        let key = (says.broadcast_id, user);
        let (position, is_served) = self.append_to(record.to, value);
        self.seen.note("records published again");
        if !is_served {
            // Its owner finds it there.
            self.truth.wait_at(&key, position);
            return self.seen.note("records that came late");
        }
        match self.truth.take_waiting(&key) {
            Some(waiting) => self.accept(position, waiting.sent),
            None => {
                self.seen.note("records published twice");
                self.truth.note_served(key, position);
            }
        }
    }

    pub fn append_to(&mut self, partition: Partition, value: Bytes) -> (Position, bool) {
        // Kafka's offsets have holes.
        let hole = match self.random.below(10) {
            0 if self.has_large_holes => 500 + self.random.next() % 3_000,
            0..=1 => 1,
            _ => 0,
        };
        let wall = self.wall();
        self.log.append(partition, hole, wall, Some(value))
    }

    fn accept(&mut self, position: Position, sent: Sent) {
        let sent = Sent { appended_at: self.wall(), ..sent };
        for client in &mut self.clients {
            if sent.names.admit(&client.user, &client.roles) {
                client.missing.insert(position);
            }
        }
        self.truth.accept(position, sent);
    }

    /// The same record once more, as a producer does that does not know whether it was taken.
    fn repeat(&mut self) {
        let many = self.truth.all().count();
        if many == 0 {
            return;
        }
        let number = self.random.below(many);
        let (position, _) = self.truth.all().nth(number).expect("so many are there");
        let mut entries = self.log.entries(position.partition).iter();
        let Some(entry) = entries.find(|entry| entry.offset == position.offset) else { return };
        let (value, wall) = (entry.value.clone(), self.wall());
        let sent = self.truth.at(position);
        let key = (sent.broadcast, sent.names.user().cloned());
        let latest = self.truth.latest(&key).expect("it stands there");
        // Later than that nobody knows it for a repeat.
        if self.log.end(position.partition) > latest.offset + REPEAT_RECORDS {
            return;
        }
        let (repeated, is_served) = self.log.append(position.partition, 0, wall, value);
        if is_served {
            self.truth.note_served(key, repeated);
            self.truth.repeats.insert(repeated);
        } else {
            self.seen.note("records that came late");
        }
    }

    /// What no node serves, and none may be stopped by.
    pub fn append_unserved(&mut self, partition: Partition) {
        let id = 7;
        let value = match self.random.below(7) {
            0 => None,
            1 => Some(String::new()),
            2 => Some("\u{0}{not json".to_owned()),
            3 => Some(format!("{{\"broadcastId\":{id},\"eventType\":\"CREATED\"}}")),
            4 => Some(format!(
                "{{\"broadcastId\":{id},\"eventType\":\"FAILED\",\
                \"userId\":\"user-1\"}}"
            )),
            5 => Some(format!("{{\"broadcastId\":-{id},\"eventType\":\"CREATED\"}}")),
            6 => Some(format!(
                "{{\"broadcastId\":{id},\"eventType\":\"CREATED\",\
                \"message\":\"m\",\"userId\":\"\"}}"
            )),
            _ => Some("[[[[[[".repeat(100)),
        };
        let wall = self.wall();
        let (_, is_served) = self.log.append(partition, 0, wall, value.map(Bytes::from));
        assert!(!is_served, "seed {}: nobody can serve this", self.seed);
        self.seen.note("records that nobody serves");
    }
}

fn sent_of(draft: &Draft, names: Names) -> Sent {
    let broadcast = &draft.broadcast;
    Sent {
        broadcast: broadcast.id,
        names,
        content: broadcast.content.clone(),
        expires_at: broadcast.expires_at,
        appended_at: broadcast.created_at,
        is_kept: !broadcast.fire_and_forget,
        is_cancelled: false,
        is_unkept: false,
    }
}
