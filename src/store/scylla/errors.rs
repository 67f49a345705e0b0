//! What the driver's errors mean: wait and ask again, or an operator has to act.

use std::io;
use std::path::PathBuf;

use scylla::errors::{
    BrokenConnectionError, BrokenConnectionErrorKind, ConnectionError, ConnectionPoolError,
    ConnectionSetupRequestErrorKind, DbError, ExecutionError, MetadataError, NewSessionError,
    PrepareError, RequestAttemptError, UseKeyspaceError,
};
use scylla::frame::frame_errors::FrameHeaderParseError;

use super::ScyllaOptions;
use crate::ports::StoreError;

/// Why the database can't be used as configured. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("store.password_file {} can't be read: {source}", .path.display())]
    PasswordFile { path: PathBuf, source: io::Error },
    #[error(
        "the database refuses user {user} ({reason}); correct store.username and \
         store.password_file"
    )]
    Password { user: String, reason: String },
    #[error("the database asks for a password; set store.username and store.password_file")]
    PasswordMissing,
    #[error(
        "store.tls_ca {} can't be used: {reason}; it must hold certificates as PEM", .path.display()
    )]
    Authority { path: PathBuf, reason: String },
    #[error(
        "the database's certificate is not accepted: {0}; store.tls_ca must name the authority \
         that signed it, and the certificate the address that the node is reached by"
    )]
    Certificate(String),
    #[error("the database answers without TLS ({0}); remove store.tls_ca, or let it speak TLS")]
    NoTls(String),
    #[error(
        "store.nodes answer, but not in CQL ({0}); name their port for CQL (9042), and set \
         store.tls_ca if they speak TLS"
    )]
    NoCql(String),
    #[error(
        "the database is too old ({0}); Corecast needs ScyllaDB 5, Apache Cassandra 4 or newer"
    )]
    Version(String),
    #[error("the database does not let the user do what is needed: {0}; grant it")]
    Permission(String),
    #[error(
        "the database has no datacenter {wanted}, but {}; correct store.datacenter",
        .known.join(", ")
    )]
    Datacenter { wanted: String, known: Vec<String> },
    #[error(
        "keyspace {keyspace} can't be made: {reason}; correct store.replication and \
         store.datacenter, or make it yourself"
    )]
    Keyspace { keyspace: String, reason: String },
    #[error("the database is not ScyllaDB ({0}); set store.scylla_ddl to false")]
    NoScylla(String),
    #[error(
        "keyspace {keyspace} holds a table {table} and none of Corecast's; choose another \
         store.keyspace"
    )]
    Foreign { keyspace: String, table: String },
    #[error(
        "keyspace {keyspace} has layout {stored}, written by a newer release of Corecast; releases \
         from layout {oldest} on can use it, this one makes {ours}: run the newer release, or \
         choose another store.keyspace"
    )]
    Newer { keyspace: String, stored: i32, oldest: i32, ours: i32 },
    #[error(
        "keyspace {keyspace} has a layout that no release of Corecast makes: {reason}; restore it, \
         or choose another store.keyspace"
    )]
    Layout { keyspace: String, reason: String },
}

/// Why one try to connect failed.
#[derive(Debug)]
pub(super) enum ConnectError {
    /// Heals by itself.
    Away(String),
    /// An operator has to act.
    Open(OpenError),
}

impl From<OpenError> for ConnectError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

/// What a failed try says.
pub(super) fn new_session_error(error: &NewSessionError, options: &ScyllaOptions) -> ConnectError {
    let found = match error {
        NewSessionError::MetadataError(error) => connection_of_metadata(error),
        _ => None,
    };
    let user = options.login.as_ref().map_or("(nobody)", |login| &login.username);
    if let Some(error) = found.and_then(|found| operator_error(found, user)) {
        return ConnectError::Open(error);
    }
    let mut reason = error.to_string();
    if options.tls_ca.is_none() && found.is_some_and(is_hang_up) {
        reason.push_str("; if the database speaks TLS, set store.tls_ca");
    }
    ConnectError::Away(reason)
}

fn connection_of_metadata(error: &MetadataError) -> Option<&ConnectionError> {
    match error {
        MetadataError::ConnectionPoolError(error) => connection_of_pool(error),
        _ => None,
    }
}

fn connection_of_pool(error: &ConnectionPoolError) -> Option<&ConnectionError> {
    match error {
        ConnectionPoolError::Broken { last_connection_error } => Some(last_connection_error),
        _ => None,
    }
}

/// `None` for what heals by itself.
fn operator_error(error: &ConnectionError, user: &str) -> Option<OpenError> {
    match error {
        ConnectionError::IoError(error) => tls_error(error),
        ConnectionError::BrokenConnection(error) => protocol_error(error),
        ConnectionError::ConnectionSetupRequestError(error) => match &error.error {
            ConnectionSetupRequestErrorKind::DbError(DbError::AuthenticationError, reason) => {
                // Cassandra says the same when it can't read its roles for now.
                let passes = reason.contains("Unable to perform authentication");
                let (user, reason) = (user.to_owned(), reason.clone());
                (!passes).then_some(OpenError::Password { user, reason })
            }
            ConnectionSetupRequestErrorKind::MissingAuthentication => {
                Some(OpenError::PasswordMissing)
            }
            ConnectionSetupRequestErrorKind::DbError(DbError::ProtocolError, reason) => {
                Some(OpenError::Version(reason.clone()))
            }
            ConnectionSetupRequestErrorKind::BrokenConnection(error) => protocol_error(error),
            _ => None,
        },
        _ => None,
    }
}

fn tls_error(error: &io::Error) -> Option<OpenError> {
    let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    match inner {
        rustls::Error::InvalidCertificate(_) => Some(OpenError::Certificate(inner.to_string())),
        rustls::Error::InvalidMessage(_) => Some(OpenError::NoTls(inner.to_string())),
        _ => None,
    }
}

fn protocol_error(error: &BrokenConnectionError) -> Option<OpenError> {
    let kind = error.downcast_ref::<BrokenConnectionErrorKind>()?;
    let BrokenConnectionErrorKind::FrameHeaderParseError(error) = kind else { return None };
    let text = error.to_string();
    match error {
        FrameHeaderParseError::VersionNotSupported(1..=3) => Some(OpenError::Version(text)),
        FrameHeaderParseError::FrameFromClient
        | FrameHeaderParseError::UnknownResponseOpcode(_)
        | FrameHeaderParseError::VersionNotSupported(_) => Some(OpenError::NoCql(text)),
        // An end in the middle of an answer is how a dying node looks.
        _ => None,
    }
}

/// Whether the node hung up on the first request: it may be dying, or speak TLS.
fn is_hang_up(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::ConnectionSetupRequestError(error) => {
            matches!(error.error, ConnectionSetupRequestErrorKind::BrokenConnection(_))
        }
        _ => false,
    }
}

pub(super) fn store_error(error: &ExecutionError) -> StoreError {
    match error {
        ExecutionError::EmptyPlan
        | ExecutionError::ConnectionPoolError(_)
        | ExecutionError::RequestTimeout(_)
        | ExecutionError::SchemaAgreementError(_)
        | ExecutionError::MetadataError(_) => StoreError::Away(error.to_string()),
        ExecutionError::LastAttemptError(inner) => attempt_error(inner),
        ExecutionError::PrepareError(inner) => prepare_error(inner),
        ExecutionError::UseKeyspaceError(UseKeyspaceError::RequestError(inner)) => {
            attempt_error(inner)
        }
        _ => StoreError::Failed(error.to_string()),
    }
}

/// Whether a node of the database does not know a keyspace or table that others know: it has not
/// heard of it yet. Cassandra lists a table a moment before it can be used.
fn is_unknown_there(reason: &str) -> bool {
    ["does not exist", "doesn't exist", "unconfigured table", "Can't find a keyspace"]
        .iter()
        .any(|sign| reason.contains(sign))
}

pub(super) fn prepare_error(error: &PrepareError) -> StoreError {
    match error {
        PrepareError::ConnectionPoolError(_) => StoreError::Away(error.to_string()),
        PrepareError::AllAttemptsFailed { first_attempt } => attempt_error(first_attempt),
        _ => StoreError::Failed(error.to_string()),
    }
}

fn attempt_error(error: &RequestAttemptError) -> StoreError {
    let passes = match error {
        RequestAttemptError::UnableToAllocStreamId
        | RequestAttemptError::BrokenConnectionError(_) => true,
        RequestAttemptError::DbError(DbError::Invalid, reason) => is_unknown_there(reason),
        RequestAttemptError::DbError(error, _) => matches!(
            error,
            DbError::Unavailable { .. }
                | DbError::Overloaded
                | DbError::IsBootstrapping
                | DbError::ReadTimeout { .. }
                | DbError::WriteTimeout { .. }
                | DbError::ReadFailure { .. }
                | DbError::WriteFailure { .. }
                | DbError::ServerError
                | DbError::TruncateError
                | DbError::RateLimitReached { .. }
        ),
        _ => false,
    };
    let mut text = error.to_string();
    if matches!(error, RequestAttemptError::DbError(DbError::Unavailable { .. }, _)) {
        text.push_str(
            "; start more of its nodes, or lower the replication of the keyspace, which \
             store.replication sets when it is made",
        );
    }
    if passes { StoreError::Away(text) } else { StoreError::Failed(text) }
}

/// What the database says against a statement's words: the tables are not as they should be.
pub(super) fn invalid_statement(error: &PrepareError) -> Option<&str> {
    match error {
        PrepareError::AllAttemptsFailed {
            first_attempt: RequestAttemptError::DbError(DbError::Invalid, reason),
        } => Some(reason),
        _ => None,
    }
}

/// What the database says against a statement, if it says something.
pub(super) fn db_error(error: &ExecutionError) -> Option<(&DbError, &str)> {
    match error {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, reason)) => {
            Some((error, reason))
        }
        _ => None,
    }
}
