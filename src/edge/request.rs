//! What a request for a stream asks: who, as which connection, and from where on.
//!
//! Pure reading of a complete head; the rules of access are `domain::access`.

use http::StatusCode;

use crate::base::UserId;
use crate::domain::{Membership, access};
use crate::limits::contract as limits;
use crate::wire::cursor::Cursor;
use crate::wire::head::{Head, HeadError};

/// The rules of `auth.mode = "none"`.
#[derive(Clone, Copy, Debug)]
pub struct AccessRules {
    /// Whether requests are taken that do not come straight from this machine.
    pub allow_anonymous: bool,
}

/// A request that may become a stream.
#[derive(Debug)]
pub struct StreamRequest {
    pub user: UserId,
    /// Sorted, without repeats.
    pub members: Vec<Membership>,
    /// As the client chose it; without one, the shard draws one.
    pub connection: Option<String>,
    /// What a client presents that is no cursor is none.
    pub cursor: Option<Cursor>,
    /// Whether it presents something, cursor or not.
    pub is_presented: bool,
    pub accepts_event_stream: bool,
}

/// Why a request can't become a stream, now or later.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error(transparent)]
    Access(#[from] access::AccessError),
    #[error("the query is not UTF-8 once it is percent-decoded")]
    Query,
    #[error("connectionId has 1 to {} bytes and no control characters", limits::NAME_BYTES_MAX)]
    Connection,
}

impl RequestError {
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Head(error) => error.status(),
            Self::Access(error) => error.status(),
            Self::Query | Self::Connection => StatusCode::BAD_REQUEST,
        }
    }
}

/// Reads the request from its head; `bytes_read` is what came with it.
pub fn read_stream_request(
    head: &Head<'_>,
    bytes_read: usize,
    rules: AccessRules,
) -> Result<StreamRequest, RequestError> {
    head.check_alone(bytes_read)?;
    if !rules.allow_anonymous {
        // A Host that is no text is no name of this machine.
        let hosts = head.values("host").map(|host| std::str::from_utf8(host).unwrap_or("?"));
        access::check_local(hosts.chain(head.authority), head.names())?;
    }
    // Decoding the form would put a sign of replacement there: another user's name, perhaps.
    let decoded = percent_encoding::percent_decode_str(head.query);
    decoded.decode_utf8().map_err(|_| RequestError::Query)?;
    let pairs: Vec<(String, String)> =
        url::form_urlencoded::parse(head.query.as_bytes()).into_owned().collect();
    let value = |name: &str| {
        let pair = pairs.iter().find(|(known, _)| known == name);
        pair.map(|(_, value)| value.as_str())
    };
    let pairs_read = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let identity = access::identify(pairs_read)?;
    let connection = match value("connectionId").filter(|text| !text.is_empty()) {
        Some(text) if !access::is_name(text) => return Err(RequestError::Connection),
        Some(text) => Some(text.to_owned()),
        None => None,
    };
    // The header beats the query, because an EventSource repeats its URL. An empty one is none, as
    // in the HTML standard.
    let header = head.text("last-event-id").filter(|text| !text.is_empty());
    let presented = header.or_else(|| value("lastEventId"));
    Ok(StreamRequest {
        user: identity.user,
        members: identity.members,
        connection,
        cursor: presented.and_then(|text| Cursor::parse(text).ok()),
        is_presented: presented.is_some_and(|text| !text.is_empty()),
        accepts_event_stream: head.accepts_event_stream(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::head::read_head;

    fn read(target: &str, fields: &str) -> Result<StreamRequest, RequestError> {
        let text = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
        let head = read_head(text.as_bytes()).expect("well formed").expect("complete");
        read_stream_request(&head, text.len(), AccessRules { allow_anonymous: false })
    }

    const CURSOR: &str = "IAoKoRwHwH7KB3oQBQABAgMEBQYHCAk";

    #[test]
    fn user_connection_and_cursor_are_read() {
        let request = read(
            &format!("/api/sse/connect?userId=a%20b&connectionId=tab&lastEventId={CURSOR}"),
            "Accept: text/event-stream\r\n",
        )
        .expect("valid");
        assert_eq!(request.user.as_str(), "a b");
        assert_eq!(request.connection.as_deref(), Some("tab"));
        assert_eq!(request.cursor.map(|cursor| cursor.own), Some(5));
        assert!(request.accepts_event_stream);
    }

    #[test]
    fn the_header_beats_the_query_and_what_is_no_cursor_is_none() {
        let target = format!("/api/sse/connect?userId=a&lastEventId={CURSOR}");
        let request = read(&target, "Last-Event-ID: nonsense\r\n").expect("valid");
        assert_eq!(request.cursor, None);
        let header = format!("Last-Event-ID: {CURSOR}\r\n");
        let request = read("/api/sse/connect?userId=a&lastEventId=nonsense", &header);
        assert!(request.expect("valid").cursor.is_some());
        let request = read(&target, "Last-Event-ID:\r\n").expect("valid");
        assert!(request.cursor.is_some(), "an empty one is none");
    }

    #[test]
    fn refusals_have_their_status() {
        for (target, fields, status) in [
            ("/api/sse/connect", "", 400),
            ("/api/sse/connect?userId=a&connectionId=%0a", "", 400),
            ("/api/sse/connect?userId=%ff", "", 400),
            ("/api/sse/connect?userId=a&roles=%c3", "", 400),
            ("/api/sse/connect?userId=a", "X-Forwarded-For: 1.2.3.4\r\n", 403),
            ("http://example.com/api/sse/connect?userId=a", "", 403),
            ("/api/sse/connect?userId=a", "Content-Length: 3\r\n", 400),
        ] {
            let error = read(target, fields).expect_err("refused");
            assert_eq!(error.status().as_u16(), status, "{target} {fields}");
        }
    }
}
