//! A node whose log is in Kafka: it starts while the brokers are absent and says so, serves once
//! they come, keeps its streams while they are lost, and goes on by itself.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use harness::http;
use harness::kafka::{Kafka, Version};
use harness::process::Process;
use harness::wait;

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_node_waits_for_kafka_and_outlives_its_absence() {
    if let Some(program) = harness::kafka::missing() {
        return harness::skip(&format!("no {program}"), "install a JDK 17 and Maven");
    }
    let mut kafka = Kafka::start(Version::V4_3, 1);
    kafka.kill(0);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_corecast"));
    for set in [
        "log.kind=kafka".to_owned(),
        format!("log.brokers=[\"{}\"]", kafka.addresses()[0]),
        "log.partitions=2".to_owned(),
        format!("node.data_dir={}", folder.path().display()),
        "public.listen=127.0.0.1:0".to_owned(),
        "admin.listen=127.0.0.1:0".to_owned(),
    ] {
        command.arg("--set").arg(set);
    }
    let node = Process::start("node", command).expect("the program can be run");
    let listener = |which: &'static str| {
        let prefix = format!("{which} listener on http://");
        node.wait_for_line(LONG, move |line| line.strip_prefix(&prefix).map(str::to_owned))
    };
    let (public, admin) = (listener("public"), listener("admin"));
    wait::until_true("readiness names the broker", LONG, || {
        let (status, body) = ready(&admin);
        status == 503 && body.contains(&kafka.addresses()[0])
    });

    kafka.restart(0);
    wait::until_true("the node is ready", LONG, || ready(&admin).0 == 200);
    let stream = Stream::open(&public);
    let mut stream = BufReader::new(stream.0);
    publish(&admin, "before");
    wait_for(&mut stream, "before");

    kafka.kill(0);
    wait::until_true("readiness says that Kafka is lost", LONG, || ready(&admin).0 == 503);
    kafka.restart(0);
    wait::until_true("the node is ready again", LONG, || ready(&admin).0 == 200);
    node.wait_for_line(LONG, |line| line.contains("the log is back").then_some(()));
    // On the stream that has been open all the time.
    publish(&admin, "after");
    wait_for(&mut stream, "after");
}

fn ready(admin: &str) -> (u16, String) {
    let answer = http::call(address(admin), "GET", "/health/ready", &[], None);
    (answer.status, answer.text())
}

fn publish(admin: &str, content: &str) {
    let body = format!("{{\"content\":\"{content}\",\"targetType\":\"ALL\"}}");
    let fields = [("content-type", "application/json")];
    wait::until_true("a broadcast is taken", LONG, || {
        let body = Some(body.as_bytes());
        let target = "/api/admin/broadcasts";
        http::call(address(admin), "POST", target, &fields, body).status == 200
    });
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// A user's stream, read as it comes.
struct Stream(TcpStream);

impl Stream {
    fn open(public: &str) -> Self {
        let mut socket = TcpStream::connect(public).expect("the public listener");
        socket.set_read_timeout(Some(LONG)).expect("a timeout");
        let head = "GET /api/user/sse/connect?userId=alice HTTP/1.1\r\nhost: 127.0.0.1\r\n\
                    accept: text/event-stream\r\n\r\n";
        socket.write_all(head.as_bytes()).expect("the public listener reads");
        Self(socket)
    }
}

fn wait_for(stream: &mut BufReader<TcpStream>, content: &str) {
    let wanted = format!("\"content\":\"{content}\"");
    let mut line = String::new();
    while !line.contains(&wanted) {
        line.clear();
        let read = stream.read_line(&mut line).expect("the stream goes on");
        assert_ne!(read, 0, "the stream ended");
    }
}
