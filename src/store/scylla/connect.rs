//! A session: where, as whom, with which profile.
//!
//! The profile is what brought calls through the loss of one of three nodes without an error:
//! quorums within the datacenter, a second try beside the first after 100 ms, connections probed
//! every second, and every statement but the lightweight transactions repeatable.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::policies::speculative_execution::SimpleSpeculativeExecutionPolicy;
use scylla::statement::{Consistency, SerialConsistency};

use super::errors::{ConnectError, OpenError, new_session_error};
use crate::limits::store as limits;

/// Which database, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScyllaOptions {
    /// `HOST:PORT` of some of its nodes; the others are learnt from them.
    pub nodes: Vec<String>,
    /// Lower-case letters, digits and underscores.
    pub keyspace: String,
    /// Copies of each row, when the keyspace is made.
    pub replication: u16,
    /// Whose nodes are asked, and hold the copies when the keyspace is made.
    pub datacenter: Option<String>,
    pub login: Option<Login>,
    /// Certificates of the authorities that sign the nodes'; with it, TLS is spoken.
    pub tls_ca: Option<PathBuf>,
    /// Whether tables are made with properties that only ScyllaDB knows.
    pub scylla_ddl: bool,
}

/// Who this node is to the database. The file is read at every try, so a new password is taken up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Login {
    pub username: String,
    pub password_file: PathBuf,
}

impl ScyllaOptions {
    /// The defaults of the configuration.
    pub fn new<N: Into<String>>(nodes: impl IntoIterator<Item = N>) -> Self {
        Self {
            nodes: nodes.into_iter().map(Into::into).collect(),
            keyspace: "corecast".to_owned(),
            replication: 1,
            datacenter: None,
            login: None,
            tls_ca: None,
            scylla_ddl: false,
        }
    }
}

/// One try.
pub(super) async fn connect(options: &ScyllaOptions) -> Result<Session, ConnectError> {
    let mut builder = SessionBuilder::new()
        .known_nodes(&options.nodes)
        .default_execution_profile_handle(profile(options).into_handle())
        .keyspaces_to_fetch([&options.keyspace])
        .connection_timeout(limits::CONNECTION_TIME)
        .keepalive_interval(limits::KEEPALIVE_PACE)
        .keepalive_timeout(limits::KEEPALIVE_TIME)
        .tcp_nodelay(true);
    if let Some(login) = &options.login {
        builder = builder.user(&login.username, read_password(&login.password_file)?);
    }
    if let Some(path) = &options.tls_ca {
        builder = builder.tls_context(Some(tls(path)?));
    }
    let session = tokio::time::timeout(limits::SESSION_TIME, builder.build()).await;
    let session = session.map_err(|_| {
        ConnectError::Away(format!("no session within {} s", limits::SESSION_TIME.as_secs()))
    })?;
    let session = session.map_err(|error| new_session_error(&error, options))?;
    check_datacenter(&session, options)?;
    Ok(session)
}

fn profile(options: &ScyllaOptions) -> ExecutionProfile {
    let mut balancing = DefaultPolicy::builder();
    if let Some(datacenter) = &options.datacenter {
        balancing = balancing.prefer_datacenter(datacenter.clone());
    }
    ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .serial_consistency(Some(SerialConsistency::LocalSerial))
        .request_timeout(Some(limits::REQUEST_TIME))
        .load_balancing_policy(balancing.build())
        .speculative_execution_policy(Some(Arc::new(SimpleSpeculativeExecutionPolicy {
            max_retry_count: 1,
            retry_interval: limits::SPECULATION_WAIT,
        })))
        .build()
}

fn read_password(path: &Path) -> Result<String, OpenError> {
    let text = fs::read_to_string(path)
        .map_err(|source| OpenError::PasswordFile { path: path.to_owned(), source })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn tls(path: &Path) -> Result<Arc<rustls::ClientConfig>, OpenError> {
    let refused = |reason: String| OpenError::Authority { path: path.to_owned(), reason };
    let mut roots = rustls::RootCertStore::empty();
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|error| refused(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| refused(error.to_string()))?;
        roots.add(certificate).map_err(|error| refused(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(refused("no certificate in it".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// With a name that no node has, the driver would find nobody to ask.
fn check_datacenter(session: &Session, options: &ScyllaOptions) -> Result<(), OpenError> {
    let Some(wanted) = &options.datacenter else { return Ok(()) };
    let state = session.get_cluster_state();
    let mut known: Vec<String> =
        state.get_nodes_info().iter().filter_map(|node| node.datacenter.clone()).collect();
    known.sort();
    known.dedup();
    if known.contains(wanted) {
        return Ok(());
    }
    Err(OpenError::Datacenter { wanted: wanted.clone(), known })
}
