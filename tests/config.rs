//! `config/corecast.toml` is the documented default: it says what the code says, key by key.

use corecast::ops::config::{Inputs, StoreConfig, Written, load, to_toml};

const FILE: &str = include_str!("../config/corecast.toml");

#[test]
fn the_file_equals_the_defaults() {
    let file: toml::Table = FILE.parse().expect("TOML");
    let defaults: toml::Table = to_toml(&Written::default()).parse().expect("TOML");
    assert_eq!(file, defaults);
}

#[test]
fn every_key_has_a_word_on_it() {
    let mut is_explained = false;
    for line in FILE.lines() {
        match line.trim_start().chars().next() {
            Some('#') => is_explained = true,
            // Keys that belong together share a word.
            Some('[') | None => is_explained = false,
            Some(_) => assert!(is_explained, "{line}"),
        }
    }
}

#[test]
fn an_empty_text_takes_back_what_was_set_before() {
    let set = |pairs: &[&str]| Inputs {
        environment: vec![
            ("CORECAST_STORE__KIND".to_owned(), "scylla".to_owned()),
            ("CORECAST_STORE__NODES".to_owned(), "db-1:9042".to_owned()),
            ("CORECAST_STORE__DATACENTER".to_owned(), "dc1".to_owned()),
            ("CORECAST_STORE__TLS_CA".to_owned(), "Cargo.toml".to_owned()),
            ("CORECAST_NODE__ID".to_owned(), "edge-1".to_owned()),
        ],
        sets: pairs.iter().map(|pair| (*pair).to_owned()).collect(),
        ..Inputs::default()
    };
    let (written, config) = load(&set(&[])).expect("valid");
    assert_eq!((&*written.store.datacenter, &*config.node_id), ("dc1", "edge-1"));
    let sets = ["store.datacenter=", "store.tls_ca=\"\"", "node.id="];
    let (written, config) = load(&set(&sets)).expect("valid");
    assert_eq!((&*written.store.datacenter, &*written.store.tls_ca), ("", ""));
    assert!(!config.node_id.is_empty() && config.node_id != "edge-1", "one is drawn");
    let store = |secrets: &[&str]| load(&set(secrets)).map(|(_, config)| config.store);
    let StoreConfig::Scylla(options) = store(&sets).expect("valid") else { panic!("scylla") };
    assert_eq!((options.datacenter, options.tls_ca, options.login), (None, None, None));
    let half = store(&["store.username=u", "store.password_file="]).expect_err("half a login");
    assert!(half.to_string().contains("store.username = \"u\""), "{half}");
}

#[test]
fn an_empty_text_leaves_every_key_at_its_default() {
    let defaults: toml::Table = to_toml(&Written::default()).parse().expect("TOML");
    let sections = defaults.iter().filter_map(|(name, section)| Some((name, section.as_table()?)));
    let keys = sections.flat_map(|(name, keys)| keys.keys().map(move |key| (name, key)));
    let (mut sets, mut environment) = (Vec::new(), Vec::new());
    for (section, key) in keys {
        sets.push(format!("{section}.{key}="));
        let name = format!("CORECAST_{section}__{key}").to_uppercase();
        environment.push((name, String::new()));
    }
    assert!(sets.len() > 30, "{sets:?}");
    for inputs in
        [Inputs { sets, ..Inputs::default() }, Inputs { environment, ..Inputs::default() }]
    {
        assert_eq!(load(&inputs).expect("valid").0, Written::default());
    }
}

#[test]
fn the_file_is_a_valid_configuration() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("corecast.toml");
    std::fs::write(&path, FILE).expect("written");
    let loaded = load(&Inputs { file: Some(path), ..Inputs::default() });
    assert_eq!(loaded.expect("valid").0, Written::default());
}

#[test]
fn a_value_of_the_wrong_kind_is_told_of_once() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("wrong.toml");
    let text = "[node]\ndata_dir = 5\n[log]\nkind = \"kafka\"\nbrokers = \"a:9092\"\n";
    std::fs::write(&path, text).expect("written");
    let environment = vec![("CORECAST_NODE__ID".to_owned(), "edge\u{fffd}".to_owned())];
    let inputs = Inputs { file: Some(path), environment, ..Inputs::default() };
    let said = load(&inputs).expect_err("wrong").to_string();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    for (line, parts) in lines.iter().zip([
        ["CORECAST_NODE__ID", "is not UTF-8"],
        ["log.brokers = \"a:9092\"", "must be a list"],
        ["node.data_dir = 5", "must be a text"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
}

#[test]
fn variables_of_kubernetes_services_are_left_alone() {
    let with = |pairs: &[(&str, &str)]| {
        let environment = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        load(&Inputs { environment: environment.collect(), ..Inputs::default() })
    };
    let given = [
        ("CORECAST_PORT", "tcp://10.0.0.1:8080"),
        ("CORECAST_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("CORECAST_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("CORECAST_PORT_8080_TCP_PORT", "8080"),
        ("CORECAST_PORT_8080_TCP_PROTO", "tcp"),
        ("CORECAST_SERVICE_HOST", "10.0.0.1"),
        ("CORECAST_SERVICE_PORT", "8080"),
        ("CORECAST_SERVICE_PORT_HTTP", "8080"),
        ("CORECAST_ADMIN_PORT", "tcp://10.0.0.2:8081"),
        ("CORECAST_ADMIN_PORT_8081_TCP_ADDR", "10.0.0.2"),
        ("CORECAST_ADMIN_SERVICE_PORT_HTTP", "8081"),
    ];
    assert_eq!(with(&given).expect("valid").0, Written::default());
    for wrong in ["CORECAST_PORT", "CORECAST_ADMIN_PORT", "CORECAST_PORT_8080", "CORECAST_HOST"] {
        let error = with(&[(wrong, "8080")]).expect_err("no key is so named").to_string();
        assert!(error.contains(wrong), "{error}");
    }
}

#[test]
fn each_listener_has_a_place_of_its_own() {
    let with = |public: &str, admin: &str| {
        let sets = [format!("public.listen={public}"), format!("admin.listen={admin}")];
        let sets = [sets.as_slice(), &["auth.allow_anonymous=true".to_owned()]].concat();
        load(&Inputs { sets, ..Inputs::default() }).map(drop).map_err(|error| error.to_string())
    };
    for (public, admin) in
        [("127.0.0.1:9000", "127.0.0.1:9000"), ("0.0.0.0:9000", "127.0.0.1:9000")]
    {
        let said = with(public, admin).expect_err("they get in each other's way");
        assert!(said.contains("admin.listen") && said.contains("port of its own"), "{said}");
    }
    for (public, admin) in [
        ("127.0.0.1:9000", "127.0.0.1:9001"),
        ("127.0.0.1:9000", "127.0.0.2:9000"),
        ("127.0.0.1:0", "127.0.0.1:0"),
    ] {
        with(public, admin).expect("fine");
    }
}

#[test]
fn an_unknown_key_says_where_known_ones_are() {
    let sets = vec!["node.shard=1".to_owned(), "nonsense.of_all=1".to_owned()];
    let said = load(&Inputs { sets, ..Inputs::default() }).expect_err("unknown").to_string();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].ends_with("did you mean node.shards?"), "{said}");
    assert!(lines[1].contains("check-config"), "{said}");
}
