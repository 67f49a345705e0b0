//! What producers append: messages for one, for some and for all, records of older producers,
//! records that stand in the log twice, and records that nobody can serve.

use bytes::Bytes;
use corecast::base::{
    BroadcastId, EpochMillis, EventType, Partition, Priority, TargetType, Topic, UserId,
};
use corecast::domain::{Broadcast, Target};
use corecast::wire::record::{OutgoingRecord, event_id};

use crate::records::{Names, Sent};
use crate::sky::SHAPE;
use crate::world::{ROLES, USERS, World};

/// One broadcast that is to be published.
struct Draft {
    broadcast: Broadcast,
    is_older: bool,
}

impl World {
    pub fn append(&mut self) {
        match self.random.below(16) {
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
            6 => {
                let user = UserId::new(&format!("user-{}", self.random.below(USERS)));
                let user = user.expect("a user id");
                let index = SHAPE.partition_of_user(user.as_str());
                let draft = self.draft(TargetType::Selected, Vec::new(), true);
                let partition = Partition { topic: Topic::Selected, index };
                self.publish(&draft, partition, Names::User(user));
            }
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
            _ => {
                let partitions: Vec<Partition> = SHAPE.all_partitions().collect();
                let partition = partitions[self.random.below(partitions.len())];
                self.append_unserved(partition);
            }
        }
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
            let longest = if self.random.one_in(2) { 3_000 } else { 60_000 };
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
        if !is_older {
            self.store.lock().put_content(broadcast.clone());
        }
        Draft { broadcast, is_older }
    }

    fn publish(&mut self, draft: &Draft, partition: Partition, names: Names) {
        let Draft { broadcast, is_older } = draft;
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
            target_type: (!is_older).then_some(broadcast.target.r#type),
            target_ids: is_group.then_some(&broadcast.target.ids),
            sender_id: None,
            sender_name: None,
            priority: None,
            category: None,
            created_at: Some(broadcast.created_at),
            scheduled_at: None,
            expires_at: broadcast.expires_at,
            attempt: 0,
        };
        // Kafka's offsets have holes.
        let hole = u64::from(self.random.one_in(10));
        let wall = self.wall();
        let value = Bytes::from(value.to_json());
        let (position, is_served) = self.log.append(partition, hole, wall, Some(value));
        assert!(is_served, "seed {}: {position:?} is to be served", self.seed);
        let sent = Sent {
            broadcast: broadcast.id,
            names,
            content: broadcast.content.clone(),
            expires_at: broadcast.expires_at,
            is_kept: !broadcast.fire_and_forget,
        };
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
        let (repeated, is_served) = self.log.append(position.partition, 0, wall, value);
        assert!(is_served, "its bytes are as good as those of the first");
        self.truth.repeats.insert(repeated);
    }

    /// What no node serves, and none may be stopped by.
    pub fn append_unserved(&mut self, partition: Partition) {
        let id = 7;
        let foreign = (0..).map(|number| format!("user-{number}"));
        let foreign = foreign
            .filter(|user| SHAPE.partition_of_user(user) != partition.index)
            .take(1)
            .collect::<String>();
        let value = match self.random.below(8) {
            0 => None,
            1 => Some(String::new()),
            2 => Some("\u{0}{not json".to_owned()),
            3 => Some(format!("{{\"broadcastId\":{id},\"eventType\":\"CREATED\"}}")),
            4 => Some(format!(
                "{{\"broadcastId\":{id},\"eventType\":\"CANCELLED\",\
                \"userId\":\"user-1\"}}"
            )),
            5 => Some(format!("{{\"broadcastId\":-{id},\"eventType\":\"CREATED\"}}")),
            6 => Some(format!(
                "{{\"broadcastId\":{id},\"eventType\":\"CREATED\",\
                \"message\":\"m\",\"userId\":\"\"}}"
            )),
            _ if partition.topic == Topic::Selected => Some(format!(
                "{{\"broadcastId\":{id},\
                \"eventType\":\"CREATED\",\"message\":\"m\",\"userId\":\"{foreign}\"}}"
            )),
            _ => Some("[[[[[[".repeat(100)),
        };
        let wall = self.wall();
        let (_, is_served) = self.log.append(partition, 0, wall, value.map(Bytes::from));
        assert!(!is_served, "seed {}: nobody can serve this", self.seed);
        self.seen.note("records that nobody serves");
    }
}
