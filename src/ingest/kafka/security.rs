//! TLS and passwords: what the configuration names, read once from its files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::{KafkaOptions, OptionsError};

/// Files in PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Certificates of the authorities that may vouch for a broker.
    pub authorities: PathBuf,
    /// The node's own certificate chain and its key, for brokers that ask.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Who the node is to the brokers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SaslLogin {
    pub mechanism: SaslMechanism,
    pub username: String,
    /// Its first line is the password.
    pub password_file: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SaslMechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl SaslMechanism {
    pub const ALL: [Self; 3] = [Self::Plain, Self::ScramSha256, Self::ScramSha512];

    /// As Kafka and the configuration spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// What every connection is made with.
#[derive(Clone)]
pub(super) struct Security {
    pub tls: Option<Arc<ClientConfig>>,
    /// Whether the node shows a certificate.
    pub has_identity: bool,
    pub sasl: Option<Credentials>,
}

#[derive(Clone)]
pub(super) struct Credentials {
    pub mechanism: SaslMechanism,
    pub username: String,
    pub password: String,
}

/// Without the password.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {}", self.mechanism.name(), self.username)
    }
}

impl Security {
    pub fn load(options: &KafkaOptions) -> Result<Self, OptionsError> {
        let tls = options.tls.as_ref().map(client_config).transpose()?;
        let sasl = options.sasl.as_ref().map(credentials).transpose()?;
        let has_identity = options.tls.as_ref().is_some_and(|tls| tls.identity.is_some());
        Ok(Self { tls: tls.map(Arc::new), has_identity, sasl })
    }
}

fn client_config(files: &TlsFiles) -> Result<ClientConfig, OptionsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("log.tls_ca", &files.authorities)? {
        roots
            .add(certificate)
            .map_err(|error| unreadable("log.tls_ca", &files.authorities, error))?;
    }
    // Named, so that another crate's choice of a default changes nothing here.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unreadable("log.tls_ca", &files.authorities, error))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &files.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates("log.tls_cert", certificate)?;
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("log.tls_key", key, error))?;
    builder
        .with_client_auth_cert(chain, private)
        .map_err(|error| unreadable("log.tls_cert", certificate, error))
}

fn certificates(
    key: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, OptionsError> {
    let read = CertificateDer::pem_file_iter(path)
        .and_then(|all| all.collect::<Result<Vec<_>, _>>())
        .map_err(|error| unreadable(key, path, error))?;
    if read.is_empty() {
        return Err(unreadable(key, path, "it holds no certificate"));
    }
    Ok(read)
}

fn credentials(login: &SaslLogin) -> Result<Credentials, OptionsError> {
    let key = "log.sasl_password_file";
    let text = std::fs::read_to_string(&login.password_file)
        .map_err(|error| unreadable(key, &login.password_file, error))?;
    let password = text.lines().next().unwrap_or_default().to_owned();
    if password.is_empty() {
        return Err(unreadable(key, &login.password_file, "its first line is empty"));
    }
    Ok(Credentials { mechanism: login.mechanism, username: login.username.clone(), password })
}

fn unreadable(key: &'static str, path: &Path, reason: impl fmt::Display) -> OptionsError {
    OptionsError { key, path: path.to_owned(), reason: reason.to_string() }
}
