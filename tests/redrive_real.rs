//! Dead letters by the admin API of two nodes on a real Kafka and a real CQL database, from
//! outside: sent again by both at once, by one that is killed in the middle, and with the database
//! away. Each message comes once. Cassandra stands in for ScyllaDB.

mod real;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use harness::http::{self, Response};
use harness::kafka::JavaProducer;
use harness::node::Node;
use harness::sse::Stream;
use harness::wait;
use real::{LONG, Place, World, is_missing, line, node_with, wait_until_missing, wait_until_owned};
use serde_json::{Value, json};

const LIST: &str = "/api/admin/dlt/messages";
const REDRIVE_ALL: &str = "/api/admin/dlt/redrive-all";
/// Dead letters of a story, and of those that are to be thousands.
const MANY: usize = 400;
const THOUSANDS: usize = 2_000;
/// A user in so many has a stream.
const STREAM_OF: usize = 30;

struct Story<'a> {
    world: &'a World,
    place: Place,
    nodes: [Node; 2],
    java: JavaProducer,
}

/// Somebody who is there from before his message fails.
struct User {
    name: String,
    stream: Stream,
    had: Vec<String>,
}

fn call(admin: SocketAddr, method: &str, target: &str) -> Option<Response> {
    http::try_call(admin, method, target, &[], None)
}

fn redrive_all(node: &Node) -> Response {
    call(node.admin, "POST", REDRIVE_ALL).expect("an answer")
}

fn letters(node: &Node) -> Vec<Value> {
    let (mut all, mut next) = (Vec::new(), Some(format!("{LIST}?limit=1000")));
    while let Some(target) = next {
        let page = node.get(&target);
        next = page
            .field("link")
            .and_then(|link| link.split_once('>'))
            .map(|(link, _)| link.trim_start_matches('<').to_owned());
        all.extend(page.expect_json().as_array().expect("an array").iter().cloned());
    }
    all
}

/// How many the first page shows.
fn first_page(node: &Node) -> usize {
    let page = node.get(&format!("{LIST}?limit=1000"));
    page.expect_json().as_array().map_or(0, Vec::len)
}

fn wait_for_letters(node: &Node, count: usize) -> Vec<Value> {
    wait::until(&format!("{count} dead letters"), 2 * LONG, || {
        let letters = letters(node);
        (letters.len() == count).then_some(letters)
    })
}

impl Story<'_> {
    fn start(world: &World) -> Story<'_> {
        let place = Place::new(&world.kafka, &world.cassandra);
        let nodes = [(); 2].map(|()| node_with(&place, &["testing.enabled=true"]));
        wait_until_owned(&nodes.each_ref(), "both own partitions");
        let mut java = world.kafka.java_producer();
        java.say(&["open", "p"]);
        Story { world, place, nodes, java }
    }

    /// Makes that many messages fail; whoever of their users is there.
    fn fail(&self, story: &str, count: usize) -> Vec<User> {
        let names: Vec<String> = (0..count).map(|number| format!("{story}-{number}")).collect();
        let users = names.iter().step_by(STREAM_OF).enumerate().map(|(number, name)| {
            let stream = self.nodes[number % 2].stream(&format!("userId={name}"));
            User { name: name.clone(), stream, had: Vec::new() }
        });
        let users = users.collect();
        let mark = json!({"enabled": true});
        self.nodes[0].post("/api/admin/testing/kafka-consumer-failure", &mark).expect_json();
        let body = json!({"content": story, "targetType": "SELECTED", "targetIds": names});
        self.nodes[0].create(&body);
        wait_for_letters(&self.nodes[1], count);
        users
    }

    /// Each has had it once, behind whatever happened, and so has the log, but for repeats.
    fn check(&mut self, story: &str, count: usize, users: Vec<User>) {
        assert_eq!(letters(&self.nodes[0]), [] as [Value; 0], "{story}");
        let marker = format!("end of {story}");
        self.nodes[1].say(&marker);
        for (number, User { name, mut stream, mut had }) in users.into_iter().enumerate() {
            loop {
                let Some(event) = stream.next_event() else {
                    // The node was killed.
                    let node = &self.nodes[number % 2];
                    stream = node.resume(&format!("userId={name}"), &stream);
                    continue;
                };
                if event.content() == marker {
                    break;
                }
                had.extend((event.name == "MESSAGE").then(|| event.content().to_owned()));
            }
            had.retain(|content| !content.starts_with("end of "));
            assert_eq!(had, [story], "{name}");
        }
        // Without a stream until now.
        let name = format!("{story}-{}", STREAM_OF / 2);
        self.place.wait_for_no_lag(&self.world.kafka, 2);
        let mut late = self.nodes[0].stream(&format!("userId={name}"));
        let had = late.contents_until(&marker);
        let own: Vec<_> = had.iter().filter(|content| *content == story).collect();
        assert_eq!(own.len(), 1, "{name}: {had:?}");
        let mut copies: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for record in self.java.records(&self.place.selected) {
            let value = record.value.as_deref().unwrap_or_default();
            let Ok(value) = serde_json::from_slice::<Value>(value) else { continue };
            let is_redriven = value["attempt"] == 3 && value["message"] == story;
            if let Some(user) = value["userId"].as_str().filter(|_| is_redriven) {
                copies.entry(user.to_owned()).or_default().push(record.offset);
            }
        }
        let repeats: usize = copies.values().map(|copies| copies.len() - 1).sum();
        assert_eq!(copies.len(), count, "each was published");
        println!("{story}: {count} dead letters, each came once; {repeats} repeats in the log");
    }

    fn by_both_at_once(&mut self) {
        let story = "by-both-at-once";
        let users = self.fail(story, MANY);
        let admins = self.nodes.each_ref().map(|node| node.admin);
        let calls = admins.map(|admin| {
            std::thread::spawn(move || call(admin, "POST", REDRIVE_ALL).expect("an answer"))
        });
        for call in calls {
            let answer = call.join().expect("it ends").expect_json();
            assert_eq!(answer["failureCount"], 0, "{answer}");
            assert_eq!(answer["successCount"], answer["totalMessages"]);
        }
        self.check(story, MANY, users);
    }

    fn one_letter_by_both_at_once(&mut self) {
        let story = "one-letter-by-both";
        let users = self.fail(story, STREAM_OF);
        for letter in letters(&self.nodes[0]) {
            let target =
                format!("/api/admin/dlt/redrive/{}", letter["id"].as_str().expect("an id"));
            let calls = self.nodes.each_ref().map(|node| {
                let (admin, target) = (node.admin, target.clone());
                std::thread::spawn(move || call(admin, "POST", &target).expect("an answer").status)
            });
            let answers: BTreeSet<u16> =
                calls.into_iter().map(|call| call.join().expect("it ends")).collect();
            // The slower one may find that it is gone.
            assert!(answers.contains(&200) && answers.iter().all(|one| [200, 404].contains(one)));
        }
        self.check(story, STREAM_OF, users);
    }

    fn by_a_node_that_is_killed(&mut self) {
        let story = "by-a-node-that-is-killed";
        let users = self.fail(story, MANY);
        for round in 0..3 {
            let before = first_page(&self.nodes[0]);
            if before == 0 {
                break;
            }
            let admin = self.nodes[0].admin;
            let calling = std::thread::spawn(move || call(admin, "POST", REDRIVE_ALL).is_some());
            wait::until_true("some are off the list", LONG, || first_page(&self.nodes[1]) < before);
            self.nodes[0].process.kill();
            calling.join().expect("it ends");
            println!(
                "{story}: round {round}, {before} before, {} left",
                first_page(&self.nodes[1])
            );
            self.nodes[0].launch_again();
            self.nodes[0].wait_until_ready();
        }
        let answer = redrive_all(&self.nodes[1]).expect_json();
        assert_eq!(answer["failureCount"], 0, "{answer}");
        self.check(story, MANY, users);
    }

    fn with_the_database_away(&mut self) {
        let story = "with-the-database-away";
        let users = self.fail(story, MANY);
        let before = first_page(&self.nodes[1]);
        let admin = self.nodes[0].admin;
        let calling =
            std::thread::spawn(move || call(admin, "POST", REDRIVE_ALL).expect("an answer"));
        wait::until_true("some are off the list", LONG, || first_page(&self.nodes[1]) < before);
        self.world.cassandra.freeze(0);
        let answer = calling.join().expect("it ends");
        if answer.status == 200 {
            println!("{story}: it was too quick");
        } else {
            real::assert_put_off(&answer, "ask again");
            println!("{story}: {}", answer.error(503));
            let calls = [
                ("GET", LIST),
                ("GET", "/api/admin/dlt/audit"),
                ("POST", REDRIVE_ALL),
                ("DELETE", "/api/admin/dlt/purge-all"),
                ("DELETE", "/api/admin/dlt/purge/some-topic-dlt-0-1"),
            ];
            for (method, target) in calls {
                let answer = call(self.nodes[1].admin, method, target).expect("an answer");
                real::assert_put_off(&answer, "store is away");
            }
        }
        self.world.cassandra.thaw(0);
        self.nodes.iter().for_each(|node| wait_until_missing(node, &[]));
        let answer = wait::until("all are sent", LONG, || {
            let answer = redrive_all(&self.nodes[0]);
            (answer.status == 200).then(|| answer.expect_json())
        });
        assert_eq!(answer["failureCount"], 0, "{answer}");
        self.check(story, MANY, users);
    }

    fn thousands(&mut self) {
        let story = "thousands";
        let users = self.fail(story, THOUSANDS);
        let began = Instant::now();
        let answer = redrive_all(&self.nodes[1]).expect_json();
        let counts = [&answer["totalMessages"], &answer["successCount"], &answer["failureCount"]];
        assert_eq!(counts, [&json!(THOUSANDS), &json!(THOUSANDS), &json!(0)]);
        println!("{story}: sent again in {:?}", began.elapsed());
        self.check(story, THOUSANDS, users);
    }

    /// What others left, what nobody can read, and what has no destination any more.
    fn what_stays_and_is_purged(&mut self) {
        let dead = format!("{}-dlt", self.place.selected);
        let good = real::value(Some("ann"), 77, "of another system", &json!({}));
        let elsewhere = real::value(Some("ann"), 78, "of elsewhere", &json!({}));
        let origin = [
            "kafka_dlt-original-partition=\0\0\0\u{5}",
            "kafka_dlt-original-offset=\0\0\0\0\0\0\0\u{6}",
        ];
        let own = format!("kafka_dlt-original-topic={}", self.place.selected);
        let mut send = |value: &str, headers: &[&str]| {
            self.java.send(&[&["p", &dead, "0", "ann", value], headers, &origin].concat());
        };
        send(&good, &[&own]);
        send(&elsewhere, &["kafka_dlt-original-topic=elsewhere"]);
        let selected = self.place.selected.clone();
        self.world.kafka.console_produce(&selected, &[], "h:1\tann\tno JSON\n");
        let lost = line("79", None, 79, "lost", &json!({}));
        self.world.kafka.console_produce(&self.place.group, &[], &lost);
        let found = wait_for_letters(&self.nodes[0], 4);
        let mut ann = self.nodes[1].stream("userId=ann");
        let answer = redrive_all(&self.nodes[0]).expect_json();
        assert_eq!((&answer["successCount"], &answer["failureCount"]), (&json!(1), &json!(3)));
        let reasons = answer["failures"].to_string();
        for said in
            ["comes from elsewhere", "not a MessageDeliveryEvent", "broadcast 79 is not known"]
        {
            assert!(reasons.contains(said), "{said} in {reasons}");
        }
        let contents = |stream: &mut Stream| {
            let mut contents = stream.contents_until("end of what stays");
            contents.retain(|content| !content.starts_with("end of "));
            contents
        };
        self.nodes[0].say("end of what stays");
        assert_eq!(contents(&mut ann), ["of another system"]);
        // It fails again, and stays; purged, it is not there for either node.
        let left = wait_for_letters(&self.nodes[1], 3);
        assert!(left.iter().all(|letter| found.contains(letter)));
        for (number, letter) in left.iter().enumerate() {
            let id = letter["id"].as_str().expect("an id");
            let redrive = format!("/api/admin/dlt/redrive/{id}");
            let admin = |of: usize| self.nodes[(number + of) % 2].admin;
            call(admin(0), "POST", &redrive).expect("an answer").error(409);
            let purge = format!("/api/admin/dlt/purge/{id}");
            assert_eq!(call(admin(0), "DELETE", &purge).expect("an answer").status, 204);
            call(admin(1), "POST", &redrive).expect("an answer").error(404);
        }
        assert_eq!(letters(&self.nodes[0]), [] as [Value; 0]);
        let lines = self.nodes[1].get("/api/admin/dlt/audit?limit=1000").expect_json();
        let purged = lines.as_array().expect("an array").iter();
        let purged: Vec<_> = purged.filter(|line| line["action"] == "PURGE").collect();
        assert_eq!(purged.len(), 3);
        assert_eq!(purged[0]["dltMessageId"], left[2]["id"], "newest first, of both nodes");
    }
}

#[test]
fn dead_letters_are_sent_again_once_whatever_happens() {
    if is_missing() {
        return;
    }
    let world = World::start(1, 1);
    let mut story = Story::start(&world);
    story.one_letter_by_both_at_once();
    story.by_both_at_once();
    story.by_a_node_that_is_killed();
    story.thousands();
    story.what_stays_and_is_purged();
    story.with_the_database_away();
}
