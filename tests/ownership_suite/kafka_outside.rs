//! What others do with the groups: Kafka's own tools, programs that are not ours, brokers that want
//! a password, a second cluster of nodes.

use std::time::Instant;

use corecast::base::Topic;
use corecast::ingest::kafka::{KafkaLog, KafkaOptions, SaslLogin, SaslMechanism};
use corecast::ports::{Log, NewRecord, Standing};
use harness::kafka::{Kafka, Listener, USER, Version, are_to_be_had, shared};

use crate::kafka::Groups;
use crate::nodes::{count, patient, share_all};
use crate::{PARTITIONS, Site, run};

const GROUPS_TOOL: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";

fn is_refused(standing: &Standing) -> bool {
    matches!(standing, Standing::Refused(_))
}

#[test]
fn kafkas_tools_show_members_partitions_and_lag() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let groups = Groups::at(shared());
        let (first, second) = (groups.node(), groups.node());
        let owned = share_all(&[&first, &second]).await;
        first.commit_all(2).await;
        second.commit_all(1).await;
        let log = KafkaLog::new(groups.options.clone()).expect("no files");
        // Two and more for each partition of the topic.
        let records = (0..100).map(|number| NewRecord {
            topic: Topic::Group,
            key: format!("key-{number}").into(),
            value: "value".into(),
            headers: Vec::new(),
        });
        let records: Vec<NewRecord> = records.collect();
        patient("records", async || log.append(records.clone()).await).await;

        let described = shared().group(&groups.groups.group);
        assert_eq!(described.len(), usize::from(PARTITIONS));
        for line in &described {
            assert_eq!(line.topic, groups.options.topic_group);
            assert!(line.member.starts_with("corecast-test-"), "{line:?}");
            let partition =
                corecast::base::Partition { topic: Topic::Group, index: line.partition };
            let next = if owned[0].contains_key(&partition) { 2 } else { 1 };
            assert_eq!(line.current, Some(next), "{line:?}");
            let end = log.bounds(partition).await.expect("bounds").end;
            assert_eq!(line.lag, Some(end - next), "{line:?}");
        }
        let dead = shared().group(&groups.groups.dead_letters);
        let mut topics: Vec<&str> = dead.iter().map(|line| line.topic.as_str()).collect();
        topics.sort_unstable();
        let names = [&groups.options.topic_group, &groups.options.topic_selected];
        assert_eq!(topics, names.map(|name| format!("{name}-dlt")));
        assert!(dead.iter().all(|line| line.partition == 0 && line.member != "-"), "{dead:?}");
        assert_ne!(dead[0].member, dead[1].member, "each node has one");
        let bootstrap = &groups.options.brokers[0];
        let arguments = ["--bootstrap-server", bootstrap, "--describe", "--members", "--verbose"];
        let arguments = [&arguments[..], &["--group", &groups.groups.group]].concat();
        let members = shared().tool(GROUPS_TOOL, &arguments, "");
        println!("{members}");
        for owned in &owned {
            let indexes = owned.keys().filter(|partition| partition.topic == Topic::Group);
            let indexes: Vec<String> = indexes.map(|one| one.index.to_string()).collect();
            assert!(members.contains(&indexes.join(",")), "{indexes:?} in\n{members}");
        }
    });
}

#[test]
fn another_programs_consumers_keep_a_node_out_until_they_end() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let mut java = shared().java_consumer();
        for protocol in ["classic", "consumer"] {
            let groups = Groups::at(shared());
            // The topics have to be there for somebody to read them.
            let log = KafkaLog::new(groups.options.clone()).expect("no files");
            patient("the topics", async || log.shape().await).await;
            let (group, topic) = (&groups.groups.group, &groups.options.topic_group);
            java.join(group, topic, protocol).expect("joins");
            let node = groups.node();
            let Standing::Refused(said) = node.says(is_refused).await else { unreachable!() };
            assert!(said.contains(&groups.groups.group), "{said}");
            assert!(said.contains("stop them"), "{said}");
            assert!(said.contains("at 127.0.0.1"), "which ones: {said}");
            // The other group is not concerned.
            let owned = node.owned().await;
            assert_eq!(count(&owned, Topic::Group), 0, "{owned:?}");
            java.leave();
            let began = Instant::now();
            node.owns_all().await;
            println!("{protocol}: taken over after {:?}", began.elapsed());
            node.is_member().await;
            node.commit_all(1).await;
        }
    });
}

#[test]
fn another_programs_consumers_that_come_later_are_kept_out_or_said() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let mut java = shared().java_consumer();
        let groups = Groups::at(shared());
        let (group, topic) = (&groups.groups.group, &groups.options.topic_group);
        let node = groups.node();
        let owned = node.owns_all().await;
        node.is_member().await;
        let refused = java.join(group, topic, "classic").expect_err("kept out");
        assert!(refused.contains("InconsistentGroupProtocol"), "{refused}");
        assert_eq!((node.owned().await, node.standing()), (owned, Some(Standing::Member)));
        // The brokers let one of the newer protocol in, and would share out by themselves.
        java.join(group, topic, "consumer").expect("joins");
        let Standing::Refused(said) = node.says(is_refused).await else { unreachable!() };
        assert!(said.contains(group) && said.contains("at 127.0.0.1"), "{said}");
        assert_eq!(count(&node.owned().await, Topic::Group), 0);
        java.leave();
        node.owns_all().await;
        node.commit_all(1).await;
    });
}

#[test]
fn a_wrong_password_is_refused_with_what_to_do() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let kafka = Kafka::start_secured(Version::V4_3);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let password_file = folder.path().join("password");
        std::fs::write(&password_file, "wrong-password\n").expect("a temporary folder");
        let mut groups = Groups::at(&kafka);
        let mechanism = SaslMechanism::ScramSha256;
        groups.options = KafkaOptions {
            brokers: vec![kafka.address(0, Listener::Sasl)],
            sasl: Some(SaslLogin { mechanism, username: USER.to_owned(), password_file }),
            ..groups.options
        };
        let node = groups.node();
        let Standing::Refused(said) = node.says(is_refused).await else { unreachable!() };
        assert!(said.contains("log.sasl_password_file"), "{said}");
        assert!(!said.contains("wrong-password"), "a password is told: {said}");
    });
}

#[test]
fn two_clusters_of_nodes_with_one_group_keep_to_their_own_topics() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let one = Groups::at(shared());
        let other = Groups { groups: one.groups.clone(), ..Groups::at(shared()) };
        let nodes = [one.node(), other.node(), one.node()];
        share_all(&[&nodes[0], &nodes[2]]).await;
        nodes[1].owns_all().await;
        for (node, next) in nodes.iter().zip(1..) {
            node.commit_all(next).await;
        }
        let found = nodes[1].checkpoints().await;
        assert!(found.values().all(|next| *next == 2), "{found:?}");
        let found = nodes[0].checkpoints().await;
        for (node, next) in [(&nodes[0], 1), (&nodes[2], 3)] {
            let owned = node.owned().await;
            assert!(owned.keys().all(|partition| found[partition] == next), "{found:?}");
        }
    });
}

#[test]
fn a_node_of_another_partition_count_ends() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let groups = Groups::at(shared());
        let node = groups.node();
        node.owns_all().await;
        let options = KafkaOptions { partitions: PARTITIONS + 1, ..groups.options.clone() };
        let wrong = Groups { options, groups: groups.groups.clone() };
        let ended = wrong.ownership(true);
        let error = tokio::time::timeout(crate::LONG, ended.run(&|_| {})).await.expect("it ends");
        assert!(error.to_string().contains("log.partitions"), "{error}");
        assert_eq!(node.standing(), Some(Standing::Member));
    });
}
