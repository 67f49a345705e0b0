//! P3, nobody else's: no event reaches a user outside its audience, live, resumed on another node,
//! from the store, with the cursor of somebody else, or after `kill -9`. Each message says by a
//! word of its own for whom it is. What one node does of it is in `tests/first_light.rs`.

use std::collections::BTreeSet;
use std::time::Instant;

use corecast::base::partition_of_key;
use harness::node::Node;
use harness::sse::Stream;
use harness::wait;
use serde_json::{Value, json};
use url::form_urlencoded::Serializer;

use crate::real::{LONG, PARTITIONS, PROGRAM, Place, is_missing, value};
use crate::users::lock;
use crate::world::{self, World};

const WORD: &str = "canary-";
/// What a user may be a member of: as a query has it, and as a broadcast.
const KINDS: [(&str, &str); 3] = [("roles", "ROLE"), ("groups", "GROUP"), ("products", "PRODUCT")];
/// Names that are almost others, and one that nobody has.
const NAMES: [&str; 7] = ["editor", "edit", "editors", "Editor", "\u{e9}diteur", "ann", "nobody"];
/// Ids of which some begin others, some are names of roles or words of ours, and some are what a
/// careless reader takes for several, or for another one. Odd ones: of this kind more follow.
const IDS: [&str; 20] = [
    "a",
    "an",
    "ann",
    "anna",
    "Ann",
    "ann ",
    " ann",
    "ann,ben",
    "ann&userId=ben",
    "ann%20",
    "ben",
    "editor",
    "ALL",
    "null",
    "../ann",
    "s\u{fc}d",
    "su\u{308}d",
    "\u{1F600}",
    "ann\u{200b}",
    "0",
];
/// Users of one partition, with its neighbours.
const NEIGHBOURS: usize = 6;
/// From here on users come only at the end, for the first time.
const LATE: usize = 16;

#[derive(Debug)]
enum Audience {
    Everybody,
    /// Members of one of these, of a kind of `KINDS`.
    Members(usize, Vec<&'static str>),
    Users(Vec<String>),
}

struct Person {
    id: String,
    /// By kind.
    members: [Vec<&'static str>; 3],
    stream: Option<Stream>,
    cursor: Option<String>,
}

struct Story {
    nodes: Vec<Node>,
    place: Place,
    people: Vec<Person>,
    /// The audiences of all words that were sent.
    words: Vec<Audience>,
}

impl Audience {
    fn holds(&self, person: &Person) -> bool {
        match self {
            Self::Everybody => true,
            Self::Members(kind, names) => {
                person.members[*kind].iter().any(|name| names.contains(name))
            }
            Self::Users(ids) => ids.contains(&person.id),
        }
    }

    fn body(&self, content: &str) -> Value {
        let (target, ids) = match self {
            Self::Everybody => ("ALL", json!([])),
            Self::Members(kind, names) => (KINDS[*kind].1, json!(names)),
            Self::Users(ids) => ("SELECTED", json!(ids)),
        };
        json!({"content": content, "targetType": target, "targetIds": ids})
    }
}

impl Person {
    fn new(number: usize, id: String) -> Self {
        // Of each kind another name, so that the same name of another kind is not his; some have
        // several, some none.
        let of = |kind: usize| match (number + kind) % NAMES.len() {
            6 => vec![],
            5 => vec![NAMES[0], NAMES[5]],
            name => vec![NAMES[name]],
        };
        Self { id, members: [of(0), of(1), of(2)], stream: None, cursor: None }
    }

    fn come(&mut self, node: &Node, cursor: Option<&str>) {
        let mut query = Serializer::new(String::new());
        query.append_pair("userId", &self.id);
        for ((name, _), members) in KINDS.iter().zip(&self.members) {
            query.append_pair(name, &members.join(","));
        }
        let fields: Vec<(&str, &str)> =
            cursor.iter().map(|cursor| ("last-event-id", *cursor)).collect();
        self.stream = Some(node.stream_with(&query.finish(), &fields));
    }

    fn leave(&mut self) {
        self.cursor = self.stream.take().and_then(|stream| stream.last_id);
    }

    /// Reads until all that is for him has come, of the words from this one on. The last of them in
    /// each partition are for everybody, so what came before them has come, too.
    fn read(&mut self, words: &[Audience], from: usize) {
        let is_his = |number: &usize| words[*number].holds(self);
        let mut lacking: BTreeSet<usize> = (from..words.len()).filter(is_his).collect();
        let mut stream = self.stream.take().expect("he is here");
        while !lacking.is_empty() {
            let message = stream.message();
            let number = message.content().strip_prefix(WORD).and_then(|text| text.parse().ok());
            let number: usize = number.expect("all is ours");
            let audience = &words[number];
            assert!(audience.holds(self), "{:?} got what is for {audience:?}", self.id);
            let named = &message.data["userId"];
            assert!(named.is_null() || *named == self.id, "{:?} got {named}", self.id);
            lacking.remove(&number);
        }
        self.stream = Some(stream);
    }
}

impl Story {
    /// Two nodes, of which the second has almost nothing in its ring: who comes there is served by
    /// log and store.
    fn start(world: &World) -> Self {
        let place = world.place();
        let copies = ["log.replication=3", "store.replication=3"];
        let sets = [&place.sets(), &copies[..]].concat();
        let narrow = [&sets[..], &["limits.ring_frames_max=4"]].concat();
        let nodes: Vec<Node> =
            [&sets, &narrow].iter().map(|sets| Node::launch(PROGRAM, sets)).collect();
        nodes.iter().for_each(wait_until_ready);
        let ids = IDS.iter().map(|id| id.to_string()).chain(neighbours());
        let long = [255, 256].map(|length| "x".repeat(length));
        let people = ids.chain(long).enumerate();
        let people = people.map(|(number, id)| Person::new(number, id)).collect();
        Self { nodes, place, people, words: Vec::new() }
    }

    /// Sends a word to each of many audiences, by this node, and last to everybody in every
    /// partition.
    fn speak(&mut self, world: &World, node: usize) {
        self.say(node, Audience::Everybody);
        for kind in 0..KINDS.len() {
            NAMES.iter().for_each(|name| self.say(node, Audience::Members(kind, vec![name])));
            self.say(node, Audience::Members(kind, vec![NAMES[1], NAMES[3], NAMES[6]]));
        }
        // Everybody is in one of the pairs.
        for number in (0..self.people.len()).step_by(2) {
            let other = (number + 5) % self.people.len();
            let ids = [number, other].map(|number| self.people[number].id.clone());
            self.say(node, Audience::Users(ids.into()));
        }
        self.say(node, Audience::Users(vec!["nobody".to_owned()]));
        for number in 0..3 {
            self.post_astray(world, number);
        }
        self.say(node, Audience::Users(self.people.iter().map(|one| one.id.clone()).collect()));
        let mut open: BTreeSet<u16> = (0..PARTITIONS).collect();
        while !open.is_empty() {
            let id = self.create(node, Audience::Everybody);
            open.remove(&partition_of_key(id.to_string().as_bytes(), PARTITIONS));
        }
    }

    fn say(&mut self, node: usize, audience: Audience) {
        self.create(node, audience);
    }

    fn create(&mut self, node: usize, audience: Audience) -> u64 {
        let body = audience.body(&format!("{WORD}{}", self.words.len()));
        self.words.push(audience);
        self.nodes[node].create(&body)["id"].as_u64().expect("an id")
    }

    /// By another producer, whose partitioner knows nothing: in the partition, and by the key, of
    /// somebody else.
    fn post_astray(&mut self, world: &World, number: usize) {
        let (id, key) = (self.people[number].id.clone(), self.people[number + 1].id.clone());
        let wrong = (partition_of_key(id.as_bytes(), PARTITIONS) + 1) % PARTITIONS;
        let word = self.words.len();
        let content = format!("{WORD}{word}");
        let value = value(Some(&id), 9_100_000_000 + word as u64, &content, &json!({}));
        let topic = self.place.selected.clone();
        lock(&world.java).say(&["send", "flow", &topic, &wrong.to_string(), &key, &value]);
        self.words.push(Audience::Users(vec![id]));
    }

    /// Everybody who was here before comes to the node that `node_of` says: with his own cursor,
    /// with none, or with that of somebody else.
    fn come_back(&mut self, visit: usize, numbers: &[usize], node_of: impl Fn(usize) -> usize) {
        for &number in numbers {
            let cursor = match (number + visit) % 4 {
                0 | 1 => self.people[number].cursor.clone(),
                2 => None,
                _ => self.people[(number + 1) % LATE].cursor.clone(),
            };
            let node = &self.nodes[node_of(number)];
            self.people[number].come(node, cursor.as_deref());
        }
    }

    fn read(&mut self, numbers: &[usize], from: usize) {
        let (people, words) = (&mut self.people, &self.words);
        numbers.iter().for_each(|number| people[*number].read(words, from));
    }
}

/// Ids of one partition.
fn neighbours() -> impl Iterator<Item = String> {
    let ids = (0..).map(|number| format!("ann-{number}"));
    ids.filter(|id| partition_of_key(id.as_bytes(), PARTITIONS) == 0).take(NEIGHBOURS)
}

fn wait_until_ready(node: &Node) {
    wait::until_true("a node is ready", LONG, || node.get("/health/ready").status == 200);
}

#[test]
fn nobody_gets_what_is_not_his() {
    if is_missing() {
        return;
    }
    let world = world::shared();
    let mut story = Story::start(&world);
    let began = Instant::now();
    // Odd ones and neighbours on both sides of the border.
    story.people.sort_by_key(|person| partition_of_key(person.id.as_bytes(), 97));
    let early: Vec<usize> = (0..LATE).collect();
    let late: Vec<usize> = (LATE..story.people.len()).collect();

    for number in 0..LATE {
        story.people[number].come(&story.nodes[number % 2], None);
    }
    story.speak(&world, 0);
    story.read(&early, 0);

    // Away, and back on the other node; one of them is a member of nothing any more.
    story.people[..LATE].iter_mut().for_each(Person::leave);
    let from = story.words.len();
    story.speak(&world, 1);
    story.people[0].members = Default::default();
    story.come_back(0, &early, |number| (number + 1) % 2);
    story.read(&early, from);

    let from = story.words.len();
    story.nodes[0].process.kill();
    let (of_killed, others): (Vec<usize>, Vec<usize>) =
        early.iter().partition(|number| **number % 2 == 1);
    of_killed.iter().for_each(|number| story.people[*number].leave());
    story.speak(&world, 1);
    story.read(&others, from);
    story.nodes[0].launch_again();
    wait_until_ready(&story.nodes[0]);
    story.come_back(1, &of_killed, |_| 0);
    story.read(&of_killed, from);

    // All that waits for those who were never here.
    for &number in &late {
        let other = story.people[number % LATE].cursor.clone();
        let cursor = other.filter(|_| number % 2 == 1);
        story.people[number].come(&story.nodes[number / 2 % 2], cursor.as_deref());
    }
    story.read(&late, 0);
    let people = story.people.len();
    let (words, took) = (story.words.len(), began.elapsed());
    println!("{people} users, {words} words, each for whom it is, in {took:?}");
}
