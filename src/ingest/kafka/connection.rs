//! One connection to one broker, for what rskafka does not do: fetch, topic ids, retention,
//! headers as they are, consumer groups.
//!
//! One request is in flight at a time. A call that was given up, or failed, leaves the connection
//! broken: nothing may be called on it again.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::error::{ParseResponseErrorCode as _, ResponseError};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, RequestHeader, ResponseHeader, SaslAuthenticateRequest,
    SaslHandshakeRequest,
};
use kafka_protocol::protocol::{
    Decodable, Encodable, HeaderVersion as _, Request, StrBytes, VersionRange,
};
use rsasl::prelude::{Mechname, SASLClient, SASLConfig};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::security::{Credentials, Security};
use crate::limits::kafka as limits;

/// Versions of what is asked. Those that name topics by id say when a topic was replaced.
pub(super) mod versions {
    use kafka_protocol::protocol::VersionRange;

    pub const API_VERSIONS: VersionRange = VersionRange { min: 3, max: 3 };
    pub const METADATA: VersionRange = VersionRange { min: 12, max: 12 };
    pub const FETCH: VersionRange = VersionRange { min: 13, max: 16 };
    pub const CREATE_TOPICS: VersionRange = VersionRange { min: 5, max: 7 };
    /// From 13 on topics are named by id; a produce goes to the name, as rskafka's do.
    pub const PRODUCE: VersionRange = VersionRange { min: 7, max: 12 };
    pub const FIND_COORDINATOR: VersionRange = VersionRange { min: 4, max: 4 };
    pub const JOIN_GROUP: VersionRange = VersionRange { min: 7, max: 9 };
    pub const SYNC_GROUP: VersionRange = VersionRange { min: 5, max: 5 };
    pub const HEARTBEAT: VersionRange = VersionRange { min: 4, max: 4 };
    pub const LEAVE_GROUP: VersionRange = VersionRange { min: 4, max: 5 };
    pub const OFFSET_COMMIT: VersionRange = VersionRange { min: 8, max: 9 };
    pub const OFFSET_FETCH: VersionRange = VersionRange { min: 8, max: 9 };
    pub const DESCRIBE_GROUPS: VersionRange = VersionRange { min: 5, max: 5 };
    pub const CONSUMER_GROUP_DESCRIBE: VersionRange = VersionRange { min: 0, max: 1 };
    pub const SASL_HANDSHAKE: VersionRange = VersionRange { min: 1, max: 1 };
    pub const SASL_AUTHENTICATE: VersionRange = VersionRange { min: 1, max: 2 };
}

/// Why a broker did not do what it was asked. All of it may heal: a broker comes back, a password
/// is corrected on the other side.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum BrokerError {
    #[error("broker {broker} can't be reached: {reason}")]
    Unreachable { broker: String, reason: String },
    #[error("broker {broker} does not answer ({what}, {} ms)", .waited.as_millis())]
    Silent { broker: String, what: &'static str, waited: Duration },
    #[error("broker {broker} ended the connection ({what}): {reason}")]
    Closed { broker: String, what: &'static str, reason: String },
    #[error("broker {broker}: no TLS: {reason}")]
    Tls { broker: String, reason: String },
    #[error(
        "broker {broker} refuses user {username} with {mechanism}: {reason}; check \
         log.sasl_username and log.sasl_password_file, or make the user on the brokers"
    )]
    Password { broker: String, username: String, mechanism: &'static str, reason: String },
    #[error(
        "broker {broker} does not take log.sasl_mechanism = \"{mechanism}\"; it takes {offered}"
    )]
    Mechanism { broker: String, mechanism: &'static str, offered: String },
    #[error(
        "broker {broker} knows {what} in versions {offered} and {} to {} are needed; Kafka 3.1 or \
         newer is", .wanted.min, .wanted.max
    )]
    Version { broker: String, what: &'static str, wanted: VersionRange, offered: String },
    #[error("broker {broker} sent what can't be read ({what}): {reason}")]
    Garbled { broker: String, what: &'static str, reason: String },
    #[error("broker {broker} refuses {what}: {error}")]
    Refused { broker: String, what: String, error: ResponseError },
}

/// What a connection runs over.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<W: AsyncRead + AsyncWrite + Unpin + Send> Wire for W {}

pub(super) struct Connection {
    broker: String,
    wire: Box<dyn Wire>,
    client_id: StrBytes,
    /// By the number of the request.
    offered: HashMap<i16, VersionRange>,
    sent: i32,
    has_tls: bool,
    has_identity: bool,
    is_broken: bool,
}

impl Connection {
    /// Connects, asks what the broker knows, and logs in. Takes at most `CONNECT_TIME`.
    pub async fn open(
        broker: &str,
        security: &Security,
        client_id: &str,
    ) -> Result<Self, BrokerError> {
        let waited = limits::CONNECT_TIME;
        let opened = tokio::time::timeout(waited, Self::establish(broker, security, client_id));
        opened.await.unwrap_or_else(|_| {
            Err(BrokerError::Silent { broker: broker.to_owned(), what: "connecting", waited })
        })
    }

    async fn establish(
        broker: &str,
        security: &Security,
        client_id: &str,
    ) -> Result<Self, BrokerError> {
        let unreachable = |error: std::io::Error| BrokerError::Unreachable {
            broker: broker.to_owned(),
            reason: error.to_string(),
        };
        let tcp = TcpStream::connect(broker).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let wire: Box<dyn Wire> = match &security.tls {
            None => Box::new(tcp),
            Some(config) => {
                let tls = |reason: String| BrokerError::Tls { broker: broker.to_owned(), reason };
                let host = broker.rsplit_once(':').map_or(broker, |(host, _)| host);
                let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
                    .map_err(|error| tls(error.to_string()))?;
                let connector = TlsConnector::from(config.clone());
                let wrapped = connector.connect(name, tcp).await;
                Box::new(wrapped.map_err(|error| tls(explain_tls(&error, security.has_identity)))?)
            }
        };
        let mut connection = Self {
            broker: broker.to_owned(),
            wire,
            client_id: StrBytes::from_string(client_id.to_owned()),
            offered: HashMap::new(),
            sent: 0,
            has_tls: security.tls.is_some(),
            has_identity: security.has_identity,
            is_broken: false,
        };
        connection.ask_versions().await?;
        if let Some(credentials) = &security.sasl {
            connection.log_in(credentials).await?;
        }
        Ok(connection)
    }

    pub fn broker(&self) -> &str {
        &self.broker
    }

    /// Sends a request and waits for its answer, at most so long.
    pub async fn call<R: Request>(
        &mut self,
        request: &R,
        versions: VersionRange,
        waited: Duration,
    ) -> Result<R::Response, BrokerError> {
        let what = name_of::<R>();
        let broker = self.broker.clone();
        let answer = tokio::time::timeout(waited, self.exchange(request, versions)).await;
        answer.unwrap_or(Err(BrokerError::Silent { broker, what, waited }))
    }

    /// Whether something may be called on it.
    pub fn is_usable(&self) -> bool {
        !self.is_broken
    }

    /// What a broker answered with an error code.
    pub fn refused(&self, what: impl Into<String>, error: ResponseError) -> BrokerError {
        BrokerError::Refused { broker: self.broker.clone(), what: what.into(), error }
    }

    async fn exchange<R: Request>(
        &mut self,
        request: &R,
        wanted: VersionRange,
    ) -> Result<R::Response, BrokerError> {
        let what = name_of::<R>();
        debug_assert!(!self.is_broken, "{what} on a broken connection");
        let version = self.version::<R>(wanted)?;
        self.is_broken = true;
        self.sent = self.sent.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.sent)
            .with_client_id(Some(self.client_id.clone()));
        let mut out = BytesMut::zeroed(4);
        header
            .encode(&mut out, R::header_version(version))
            .and_then(|()| request.encode(&mut out, version))
            .map_err(|error| self.garbled(what, error.to_string()))?;
        let length = i32::try_from(out.len() - 4).unwrap_or(i32::MAX);
        out[..4].copy_from_slice(&length.to_be_bytes());
        let mut frame =
            self.write_and_read(&out).await.map_err(|error| self.closed(what, error))?;
        let header = ResponseHeader::decode(&mut frame, R::Response::header_version(version))
            .map_err(|error| self.garbled(what, error.to_string()))?;
        if header.correlation_id != self.sent {
            return Err(self.garbled(what, "the answer to another request".to_owned()));
        }
        let response = R::Response::decode(&mut frame, version)
            .map_err(|error| self.garbled(what, error.to_string()))?;
        self.is_broken = false;
        Ok(response)
    }

    async fn write_and_read(&mut self, out: &[u8]) -> std::io::Result<Bytes> {
        self.wire.write_all(out).await?;
        self.wire.flush().await?;
        let length = self.wire.read_i32().await?;
        let fits = usize::try_from(length).is_ok_and(|length| length <= limits::FRAME_BYTES_MAX);
        if !fits {
            // The first bytes of a TLS alert, or of HTTP, read as a length.
            let reason = format!(
                "an answer of {length} bytes: this port speaks something else; for TLS set \
                 log.tls_ca"
            );
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, reason));
        }
        let length = u64::try_from(length).unwrap_or(0);
        let mut frame = Vec::new();
        (&mut self.wire).take(length).read_to_end(&mut frame).await?;
        if frame.len() as u64 != length {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(frame.into())
    }

    /// The newest version that broker and node know, within those that are wanted.
    fn version<R: Request>(&self, wanted: VersionRange) -> Result<i16, BrokerError> {
        // What the broker knows is asked with the one version that needs no answer first.
        if R::KEY == ApiKey::ApiVersions as i16 {
            return Ok(wanted.max);
        }
        let ours = wanted.intersect(&R::VERSIONS);
        let offered = self.offered.get(&R::KEY).copied();
        let common = offered.map(|offered| offered.intersect(&ours));
        match common {
            Some(common) if !common.is_empty() => Ok(common.max),
            _ => Err(BrokerError::Version {
                broker: self.broker.clone(),
                what: name_of::<R>(),
                wanted,
                offered: offered.map_or("none".to_owned(), |offered| offered.to_string()),
            }),
        }
    }

    async fn ask_versions(&mut self) -> Result<(), BrokerError> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("corecast"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let answer = self.exchange(&request, versions::API_VERSIONS).await?;
        if let Some(error) = answer.error_code.err() {
            return Err(self.refused("to say its versions", error));
        }
        let range = |min, max| VersionRange { min, max };
        self.offered = answer
            .api_keys
            .iter()
            .map(|one| (one.api_key, range(one.min_version, one.max_version)))
            .collect();
        Ok(())
    }

    async fn log_in(&mut self, credentials: &Credentials) -> Result<(), BrokerError> {
        let mechanism = credentials.mechanism.name();
        let request =
            SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
        let answer = self.exchange(&request, versions::SASL_HANDSHAKE).await?;
        let broker = self.broker.clone();
        match answer.error_code.err() {
            None => {}
            Some(ResponseError::UnsupportedSaslMechanism) => {
                let offered: Vec<&str> = answer.mechanisms.iter().map(StrBytes::as_str).collect();
                let offered = offered.join(", ");
                return Err(BrokerError::Mechanism { broker, mechanism, offered });
            }
            // What a listener without passwords says.
            Some(ResponseError::IllegalSaslState) => {
                let offered = "no password at all: leave log.sasl_mechanism empty".to_owned();
                return Err(BrokerError::Mechanism { broker, mechanism, offered });
            }
            Some(error) => return Err(self.refused("the login", error)),
        }
        let username = credentials.username.clone();
        let wrong = |reason: String| BrokerError::Password {
            broker: broker.clone(),
            username: username.clone(),
            mechanism,
            reason,
        };
        let config =
            SASLConfig::with_credentials(None, username.clone(), credentials.password.clone())
                .map_err(|error| wrong(error.to_string()))?;
        let name =
            Mechname::parse(mechanism.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        let mut session = SASLClient::new(config)
            .start_suggested(&[name])
            .map_err(|error| wrong(error.to_string()))?;
        let mut received: Option<Bytes> = None;
        loop {
            let mut out = Vec::new();
            let state = session
                .step(received.as_deref(), &mut out)
                .map_err(|error| wrong(error.to_string()))?;
            if state.has_sent_message() {
                let request = SaslAuthenticateRequest::default().with_auth_bytes(out.into());
                let answer = self.exchange(&request, versions::SASL_AUTHENTICATE).await?;
                if answer.error_code.err().is_some() {
                    let said = answer.error_message.as_ref().map_or("", |said| said.as_str());
                    return Err(wrong(said.to_owned()));
                }
                received = Some(answer.auth_bytes);
            }
            if state.is_finished() {
                return Ok(());
            }
        }
    }

    fn garbled(&self, what: &'static str, reason: String) -> BrokerError {
        BrokerError::Garbled { broker: self.broker.clone(), what, reason }
    }

    fn closed(&self, what: &'static str, error: std::io::Error) -> BrokerError {
        let broker = self.broker.clone();
        if error.kind() == std::io::ErrorKind::InvalidData {
            if self.has_tls {
                return BrokerError::Tls { broker, reason: explain_tls(&error, self.has_identity) };
            }
            return self.garbled(what, error.to_string());
        }
        let advice = if self.has_tls {
            "if it does so always, the listener may want a password (log.sasl_mechanism) or a \
             certificate (log.tls_cert)"
        } else {
            "if it does so always, the listener may want TLS (log.tls_ca) or a password \
             (log.sasl_mechanism)"
        };
        BrokerError::Closed { broker, what, reason: format!("{error}; {advice}") }
    }
}

/// What a request is called in messages.
fn name_of<R: Request>() -> &'static str {
    let full = std::any::type_name::<R>();
    full.rsplit("::").next().unwrap_or(full)
}

fn explain_tls(error: &std::io::Error, has_identity: bool) -> String {
    use rustls::{AlertDescription, CertificateError, Error};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let advice = match inner {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "; the authority of its certificate is not in log.tls_ca"
        }
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => {
            "; its certificate is for another host: name it in log.brokers as the certificate does"
        }
        Some(Error::InvalidCertificate(_)) => "; its certificate has to be renewed",
        // Java says of a certificate that is missing that it is bad.
        Some(Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::BadCertificate,
        )) if !has_identity => "; it wants a certificate: set log.tls_cert and log.tls_key",
        Some(Error::AlertReceived(_)) if has_identity => "; it refuses log.tls_cert",
        Some(Error::InvalidMessage(_)) => {
            "; this port does not speak TLS: choose another, or leave log.tls_ca empty"
        }
        _ if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "; this port may not speak TLS: choose another, or leave log.tls_ca empty"
        }
        _ => "",
    };
    format!("{error}{advice}")
}
