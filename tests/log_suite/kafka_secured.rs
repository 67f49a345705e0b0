//! TLS and passwords: each way in works for fetching (our own connections) and producing
//! (rskafka's), and each wrong way says what to do.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use corecast::base::Topic;
use corecast::ingest::kafka::{KafkaLog, KafkaOptions, SaslLogin, SaslMechanism, TlsFiles};
use corecast::ports::LogError;
use harness::kafka::{Kafka, Listener, PASSWORD, USER, Version, are_to_be_had};

use crate::brokers::{open, options};
use crate::{fetch_all, header, record, run, shape_of, text};

fn secured() -> &'static Kafka {
    static BROKER: OnceLock<Kafka> = OnceLock::new();
    BROKER.get_or_init(|| Kafka::start_secured(Version::V4_3))
}

fn at(listener: Listener) -> KafkaOptions {
    KafkaOptions { brokers: vec![secured().address(0, listener)], ..options(secured()) }
}

fn tls(identity: Option<(PathBuf, PathBuf)>) -> Option<TlsFiles> {
    Some(TlsFiles { authorities: secured().keys().authority(), identity })
}

fn login(folder: &Path, mechanism: SaslMechanism, password: &str) -> Option<SaslLogin> {
    let password_file = folder.join(format!("{}-{password}", mechanism.name()));
    std::fs::write(&password_file, format!("{password}\n")).expect("a temporary folder");
    Some(SaslLogin { mechanism, username: USER.to_owned(), password_file })
}

#[test]
fn every_way_in_works_for_fetching_and_producing() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut ways =
            vec![KafkaOptions { tls: tls(Some(secured().keys().client())), ..at(Listener::Tls) }];
        for mechanism in SaslMechanism::ALL {
            let sasl = login(folder.path(), mechanism, PASSWORD);
            ways.push(KafkaOptions { sasl: sasl.clone(), ..at(Listener::Sasl) });
            ways.push(KafkaOptions { sasl, tls: tls(None), ..at(Listener::SaslTls) });
        }
        for options in ways {
            let log = open(&options);
            shape_of(&*log).await;
            let mut direct = record(Topic::Group, "k", "direct");
            direct.headers = vec![header("h", None)];
            let records = vec![record(Topic::Group, "k", "plain"), direct];
            log.append(records).await.unwrap_or_else(|error| panic!("{options:?}: {error}"));
            let found = fetch_all(&*log, 2).await;
            let found: Vec<_> = found.iter().map(|(_, one)| text(one.value.as_ref())).collect();
            assert_eq!(found, ["plain", "direct"], "{options:?}");
        }
    });
}

#[test]
fn every_wrong_way_says_what_to_do() {
    if !are_to_be_had() {
        return;
    }
    run(async {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let keys = secured().keys();
        let sasl = |mechanism, password| login(folder.path(), mechanism, password);
        let right = || sasl(SaslMechanism::Plain, PASSWORD);
        let foreign =
            TlsFiles { authorities: keys.other_authority(), identity: Some(keys.client()) };
        let nobody = |login: Option<SaslLogin>| {
            login.map(|login| SaslLogin { username: "nobody".to_owned(), ..login })
        };
        let mut cases = vec![
            ("log.tls_ca", KafkaOptions { tls: Some(foreign), ..at(Listener::Tls) }),
            (
                "set log.tls_cert and log.tls_key",
                KafkaOptions { tls: tls(None), ..at(Listener::Tls) },
            ),
            (
                "refuses log.tls_cert",
                KafkaOptions { tls: tls(Some(keys.stranger())), ..at(Listener::Tls) },
            ),
            ("log.tls_ca", at(Listener::Tls)),
            ("log.tls_ca", KafkaOptions { sasl: right(), ..at(Listener::SaslTls) }),
            ("leave log.tls_ca empty", KafkaOptions { tls: tls(None), ..at(Listener::Plain) }),
            ("log.sasl_mechanism", at(Listener::Sasl)),
            ("log.sasl_mechanism", KafkaOptions { tls: tls(None), ..at(Listener::SaslTls) }),
            (
                "leave log.sasl_mechanism empty",
                KafkaOptions { sasl: right(), ..at(Listener::Plain) },
            ),
            ("log.sasl_username", KafkaOptions { sasl: nobody(right()), ..at(Listener::Sasl) }),
        ];
        for mechanism in SaslMechanism::ALL {
            let wrong = sasl(mechanism, "wrong-password");
            cases.push((
                "check log.sasl_username and log.sasl_password_file",
                KafkaOptions { sasl: wrong, ..at(Listener::Sasl) },
            ));
        }
        for (expected, options) in cases {
            match open(&options).shape().await {
                Err(LogError::Away(said)) => {
                    assert!(said.contains(expected), "{expected}: {said}");
                    assert!(said.contains(&options.brokers[0]), "the broker: {said}");
                    assert!(!said.contains("-password"), "a password is told: {said}");
                }
                other => panic!("{expected}: {other:?}"),
            }
        }
    });
}

#[test]
fn files_that_cannot_be_used_are_named_by_their_key() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (empty, missing) = (folder.path().join("empty"), folder.path().join("missing"));
    std::fs::write(&empty, "").expect("a temporary folder");
    let options = KafkaOptions {
        brokers: vec!["127.0.0.1:9".to_owned()],
        topic_selected: "s".to_owned(),
        topic_group: "g".to_owned(),
        topic_control: "c".to_owned(),
        partitions: 1,
        replication: 1,
        retention: std::time::Duration::from_secs(3_600),
        dead_retention: std::time::Duration::from_secs(3_600),
        fetch_pace: std::time::Duration::ZERO,
        client_id: "corecast-test".to_owned(),
        tls: None,
        sasl: None,
    };
    for file in [&empty, &missing] {
        let tls = Some(TlsFiles { authorities: file.clone(), identity: None });
        let mechanism = SaslMechanism::Plain;
        let sasl =
            Some(SaslLogin { mechanism, username: "u".to_owned(), password_file: file.clone() });
        for (key, options) in [
            ("log.tls_ca", KafkaOptions { tls, ..options.clone() }),
            ("log.sasl_password_file", KafkaOptions { sasl, ..options.clone() }),
        ] {
            let said = KafkaLog::new(options).err().map(|error| error.to_string());
            let said = said.unwrap_or_else(|| panic!("{key} was taken"));
            assert!(said.starts_with(&format!("{key} = {}: ", file.display())), "{said}");
        }
    }
}
