//! Configuration: as written (`written.rs`), turned once into what is meant (`Config`).
//!
//! Layers, each over the one before: defaults, the file, environment variables
//! `CORECAST_SECTION__KEY`, `--set SECTION.KEY=VALUE`. An empty text is a value that is not set. A
//! key that nobody knows is an error that
//! names the nearest one that is known. All errors of one load are reported together. What this
//! release can't do is refused, never ignored.

mod kafka;
mod meant;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

pub use meant::{Config, LogConfig, StoreConfig};
pub use written::Written;

const ENV_PREFIX: &str = "CORECAST_";
const ENV_SEPARATOR: &str = "__";
/// How alike a key must be to be suggested (Jaro-Winkler, 0 to 1).
const SIMILARITY_MIN: f64 = 0.75;

/// Where a value came from, for messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    File(PathBuf),
    Environment(String),
    Set(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Set(text) => write!(f, "--set {text}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("{source_name}: {message}")]
    Unreadable { source_name: String, message: String },
    #[error("{source_name}: unknown key {key}{}", suggestion(.nearest.as_deref()))]
    Unknown { source_name: String, key: String, nearest: Option<String> },
    #[error("{key} = {value} ({source_name}): {message}")]
    Invalid { key: String, value: String, source_name: String, message: String },
}

impl Problem {
    /// Of a value that is wrong.
    fn key(&self) -> Option<String> {
        match self {
            Self::Invalid { key, .. } => Some(key.clone()),
            Self::Unreadable { .. } | Self::Unknown { .. } => None,
        }
    }
}

fn suggestion(key: Option<&str>) -> String {
    match key {
        Some(key) => format!("; did you mean {key}?"),
        None => "; `corecast check-config` without it prints every key".to_owned(),
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<Problem>);

/// What the command line and the environment say.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    pub file: Option<PathBuf>,
    /// All of the environment; what does not begin with `CORECAST_` is left alone.
    pub environment: Vec<(String, String)>,
    /// `SECTION.KEY=VALUE`.
    pub sets: Vec<String>,
}

type Values = BTreeMap<String, (toml::Value, Source)>;

/// Loads and checks.
pub fn load(inputs: &Inputs) -> Result<(Written, Config), ConfigError> {
    let known = known_keys();
    let mut problems = Vec::new();
    let mut values = Values::new();
    if let Some(path) = &inputs.file {
        read_file(path, &mut values, &mut problems);
    }
    read_environment(&inputs.environment, &known, &mut values, &mut problems);
    read_sets(&inputs.sets, &known, &mut values, &mut problems);
    for (key, (_, source)) in &values {
        if !known.contains_key(key) {
            let source_name = source.to_string();
            let nearest = nearest_key(key, &known);
            problems.push(Problem::Unknown { source_name, key: key.clone(), nearest });
        }
    }
    // An empty text takes back what an earlier layer has set.
    let is_set = |value: &toml::Value| value.as_str().is_none_or(|text| !text.is_empty());
    values.retain(|key, (value, _)| known.contains_key(key) && is_set(value));
    check_kinds(&known, &mut values, &mut problems);
    let written = merge(&values, &mut problems);
    let told: BTreeSet<String> = problems.iter().filter_map(Problem::key).collect();
    let config = meant::mean(&written, &mut |key: &str, message: String| {
        // Of a value that could not be taken, its default says nothing.
        if told.contains(key) {
            return;
        }
        let (value, source_name) = values.get(key).map_or_else(
            || (known.get(key).map_or(String::new(), ToString::to_string), "default".to_owned()),
            |(value, source)| (value.to_string(), source.to_string()),
        );
        let key = key.to_owned();
        problems.push(Problem::Invalid { key, value, source_name, message });
    });
    match config {
        Some(config) if problems.is_empty() => Ok((written, config)),
        _ => Err(ConfigError(problems)),
    }
}

/// The configuration as a file would say it.
pub fn to_toml(written: &Written) -> String {
    toml::to_string(written).unwrap_or_else(|error| format!("# {error}\n"))
}

/// Every key, with its default.
fn known_keys() -> BTreeMap<String, toml::Value> {
    let mut known = BTreeMap::new();
    if let Ok(toml::Value::Table(sections)) = toml::Value::try_from(Written::default()) {
        flatten(&sections, &mut |key, value| {
            known.insert(key, value);
        });
    }
    known
}

fn flatten(sections: &toml::Table, each: &mut impl FnMut(String, toml::Value)) {
    for (section, values) in sections {
        match values {
            toml::Value::Table(values) => {
                for (key, value) in values {
                    each(format!("{section}.{key}"), value.clone());
                }
            }
            value => each(section.clone(), value.clone()),
        }
    }
}

fn read_file(path: &Path, values: &mut Values, problems: &mut Vec<Problem>) {
    let mut unreadable = |message: String| {
        problems.push(Problem::Unreadable { source_name: path.display().to_string(), message });
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return unreadable(error.to_string()),
    };
    match text.parse::<toml::Table>() {
        Ok(sections) => flatten(&sections, &mut |key, value| {
            values.insert(key, (value, Source::File(path.to_owned())));
        }),
        Err(error) => unreadable(error.to_string()),
    }
}

fn read_environment(
    environment: &[(String, String)],
    known: &BTreeMap<String, toml::Value>,
    values: &mut Values,
    problems: &mut Vec<Problem>,
) {
    for (name, text) in environment {
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
        if is_of_kubernetes(name, text) {
            continue;
        }
        let source = Source::Environment(name.clone());
        // What stands there for bytes that are no UTF-8.
        if text.contains(char::REPLACEMENT_CHARACTER) {
            let (source_name, message) = (source.to_string(), "is not UTF-8".to_owned());
            problems.push(Problem::Unreadable { source_name, message });
            continue;
        }
        let Some((section, key)) = rest.split_once(ENV_SEPARATOR) else {
            let nearest = nearest_key(&rest.to_lowercase().replace('_', "."), known);
            let message =
                format!("must be named CORECAST_SECTION__KEY{}", suggestion(nearest.as_deref()));
            problems.push(Problem::Unreadable { source_name: source.to_string(), message });
            continue;
        };
        let key = format!("{}.{}", section.to_lowercase(), key.to_lowercase());
        let is_list = matches!(known.get(&key), Some(toml::Value::Array(_)));
        let value = if is_list && !text.is_empty() {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            toml::Value::Array(items.map(|item| toml::Value::String(item.to_owned())).collect())
        } else {
            parse_value(text, known.get(&key))
        };
        values.insert(key, (value, source));
    }
}

/// Kubernetes gives each container such variables for every service of its namespace, and there one
/// named `corecast` or `corecast-admin` is likely.
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
    if name.contains(ENV_SEPARATOR) {
        return false;
    }
    if name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") {
        return true;
    }
    name.match_indices("_PORT").any(|(at, found)| {
        let mut words = name[at + found.len()..].split('_').skip(1);
        match (words.next(), words.next()) {
            (None, _) => value.contains("://"),
            (Some(port), Some(protocol)) => {
                port.parse::<u16>().is_ok() && PROTOCOLS.contains(&protocol)
            }
            (Some(_), None) => false,
        }
    })
}

fn read_sets(
    sets: &[String],
    known: &BTreeMap<String, toml::Value>,
    values: &mut Values,
    problems: &mut Vec<Problem>,
) {
    for set in sets {
        let source = Source::Set(set.clone());
        match set.split_once('=') {
            Some((key, text)) if key.contains('.') => {
                let key = key.trim().to_owned();
                let value = parse_value(text.trim(), known.get(&key));
                values.insert(key, (value, source));
            }
            _ => problems.push(Problem::Unreadable {
                source_name: source.to_string(),
                message: "must be SECTION.KEY=VALUE".to_owned(),
            }),
        }
    }
}

/// A TOML value; a text that is none, or that stands where a string is wanted, is that string.
fn parse_value(text: &str, default: Option<&toml::Value>) -> toml::Value {
    let parsed = format!("value = {text}").parse::<toml::Table>();
    let parsed = parsed.ok().and_then(|mut table| table.remove("value"));
    match (parsed, default) {
        (Some(toml::Value::String(text)), _) => toml::Value::String(text),
        // `node.shards` takes a string, a number or a list.
        (Some(value), Some(toml::Value::String(word))) if word == "auto" => value,
        (Some(_), Some(toml::Value::String(_))) | (None, _) => toml::Value::String(text.to_owned()),
        (Some(value), _) => value,
    }
}

/// Takes out values that are of another kind than their default: the library would make 2 of 1.5,
/// and true of "yes".
fn check_kinds(
    known: &BTreeMap<String, toml::Value>,
    values: &mut Values,
    problems: &mut Vec<Problem>,
) {
    values.retain(|key, (value, source)| {
        let message = match (known.get(key), &*value) {
            // `node.shards` takes a text, a number or a list.
            (Some(toml::Value::String(word)), _) if word == "auto" => return true,
            (Some(default), value) if default.same_type(value) => return true,
            (Some(toml::Value::Integer(_)), _) => "must be a whole number",
            (Some(toml::Value::Boolean(_)), _) => "must be true or false",
            (Some(toml::Value::Array(_)), _) => "must be a list, such as [\"10.0.0.1:9092\"]",
            _ => "must be a text in quotes",
        };
        let (key, value, message) = (key.clone(), value.to_string(), message.to_owned());
        let source_name = source.to_string();
        problems.push(Problem::Invalid { key, value, source_name, message });
        false
    });
}

/// Lays the values over the defaults, one at a time, so that each wrong one is named.
fn merge(values: &Values, problems: &mut Vec<Problem>) -> Written {
    let mut written = Written::default();
    for (key, (value, source)) in values {
        let layered = config::Config::try_from(&written).and_then(|defaults| {
            config::Config::builder()
                .add_source(defaults)
                .set_override(key, to_config_value(value))?
                .build()?
                .try_deserialize::<Written>()
        });
        match layered {
            Ok(layered) => written = layered,
            Err(error) => problems.push(Problem::Invalid {
                key: key.clone(),
                value: value.to_string(),
                source_name: source.to_string(),
                message: match value {
                    toml::Value::Integer(..0) => "must not be negative".to_owned(),
                    toml::Value::Integer(_) => "is far too large".to_owned(),
                    _ => error.to_string(),
                },
            }),
        }
    }
    written
}

fn to_config_value(value: &toml::Value) -> config::ValueKind {
    match value {
        toml::Value::String(text) => config::ValueKind::String(text.clone()),
        toml::Value::Integer(number) => config::ValueKind::I64(*number),
        toml::Value::Float(number) => config::ValueKind::Float(*number),
        toml::Value::Boolean(flag) => config::ValueKind::Boolean(*flag),
        toml::Value::Array(items) => config::ValueKind::Array(
            items.iter().map(|item| config::Value::new(None, to_config_value(item))).collect(),
        ),
        toml::Value::Datetime(_) | toml::Value::Table(_) => {
            config::ValueKind::String(value.to_string())
        }
    }
}

fn nearest_key(key: &str, known: &BTreeMap<String, toml::Value>) -> Option<String> {
    let similarity = |known: &&String| strsim::jaro_winkler(key, known);
    let nearest = known.keys().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (strsim::jaro_winkler(key, nearest) >= SIMILARITY_MIN).then(|| nearest.clone())
}
