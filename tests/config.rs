//! `config/corecast.toml` is the documented default: it says what the code says, key by key.

use corecast::ops::config::{Inputs, Written, load, to_toml};

const FILE: &str = include_str!("../config/corecast.toml");

/// The file with its optional keys, which stand there as comments, in force.
fn with_optional_keys() -> String {
    let optional = ["id", "datacenter", "username", "password_file", "tls_ca"];
    optional.iter().fold(FILE.to_owned(), |file, key| {
        file.replace(&format!("\n# {key} = "), &format!("\n{key} = "))
    })
}

#[test]
fn the_file_equals_the_defaults() {
    let file: toml::Table = FILE.parse().expect("TOML");
    let defaults: toml::Table = to_toml(&Written::default()).parse().expect("TOML");
    assert_eq!(file, defaults);
}

#[test]
fn every_key_stands_in_the_file_once_with_a_word_on_it() {
    let all: toml::Table = with_optional_keys().parse().expect("TOML");
    let keys: usize = all.values().filter_map(toml::Value::as_table).map(toml::Table::len).sum();
    let mut optional = Written::default();
    optional.node.id = Some(String::new());
    optional.store.datacenter = Some(String::new());
    optional.store.username = Some(String::new());
    optional.store.password_file = Some(String::new());
    optional.store.tls_ca = Some(String::new());
    let known: toml::Table = to_toml(&optional).parse().expect("TOML");
    for (section, values) in &known {
        for key in values.as_table().expect("a section").keys() {
            assert!(all[section].as_table().is_some_and(|file| file.contains_key(key)), "{key}");
        }
    }
    let known: usize = known.values().filter_map(toml::Value::as_table).map(toml::Table::len).sum();
    assert_eq!(keys, known);
}

#[test]
fn the_file_is_a_valid_configuration() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("corecast.toml");
    std::fs::write(&path, FILE).expect("written");
    let loaded = load(&Inputs { file: Some(path), ..Inputs::default() });
    assert_eq!(loaded.expect("valid").0, Written::default());
}
