//! The harness's Kafka itself: what the other tests build on works, on both releases.

use harness::kafka::{Kafka, Version};

#[test]
fn a_broker_keeps_its_records_through_kill_and_restart() {
    if let Some(program) = harness::kafka::missing() {
        return harness::skip(&format!("no {program}"), "install a JDK and Maven");
    }
    for version in [Version::V4_3, Version::V3_9] {
        let mut kafka = Kafka::start(version, 1);
        kafka.create_topic("plain", 2, 1, &["retention.ms=3600000"]);
        assert_eq!(kafka.leader("plain", 1), Some(0));
        let line = "h1:v1,h2:v2\tkey\tvalue";
        kafka.console_produce("plain", &["--compression-codec", "zstd"], &format!("{line}\n"));
        let mut java = kafka.java_producer();
        kafka.create_topic("transactions", 1, 1, &[]);
        java.say(&["open", "sender", "transactional.id=sender"]);
        java.say(&["begin", "sender"]);
        // Offset 1 is the commit.
        assert_eq!(java.send(&["sender", "transactions", "0", "~", "first", "h", "h=1"]), 0);
        java.say(&["commit", "sender"]);
        java.say(&["begin", "sender"]);
        assert_eq!(java.send(&["sender", "transactions", "0", "key", "second"]), 2);
        java.say(&["commit", "sender"]);
        kafka.kill(0);
        kafka.restart(0);
        java.say(&["trim", "transactions", "0", "2"]);
        assert_eq!(kafka.console_consume("plain", 1), [line]);
        assert_eq!(kafka.console_consume("transactions", 1), ["NO_HEADERS\tkey\tsecond"]);
    }
}
