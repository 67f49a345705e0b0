//! Request heads on the public listener, and the short answers that the edge gives itself.
//!
//! Reads by httparse, strictly: what is ambiguous is refused, because a proxy in front may have
//! understood it otherwise (RFC 9112, sections 6.3 and 11.2). Pure; any thread.

use arrayvec::ArrayVec;
use http::StatusCode;

use crate::limits::edge as limits;

/// The two paths of the stream.
pub const STREAM_PATHS: [&str; 2] = ["/api/user/sse/connect", "/api/sse/connect"];

/// Longer bodies there are none; somebody may count them in 63 bits.
const LENGTH_MAX: u64 = i64::MAX as u64;

/// The head of an accepted stream. The body ends with the connection.
pub const STREAM_RESPONSE_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n\
    content-type: text/event-stream\r\n\
    cache-control: no-store\r\n\
    x-accel-buffering: no\r\n\
    x-content-type-options: nosniff\r\n\
    connection: close\r\n\r\n";

/// A complete request head; borrows the bytes that it was read from.
#[derive(Debug)]
pub struct Head<'a> {
    pub method: &'a str,
    /// Without query.
    pub path: &'a str,
    /// Behind the `?`, not decoded; empty without one.
    pub query: &'a str,
    /// Whom an absolute form asks, whatever the Host field says.
    pub authority: Option<&'a str>,
    /// 0 or 1, of HTTP/1.
    pub minor_version: u8,
    fields: ArrayVec<(&'a str, &'a [u8]), { limits::HEAD_FIELDS_MAX }>,
    /// Length of the head: what is behind it is body, or another request.
    pub bytes: usize,
}

/// Where the body of a request ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    /// After so many bytes.
    Length(u64),
    /// Where its chunks say.
    Chunked,
}

/// Why a head was refused. The connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeadError {
    #[error("the request is not HTTP/1: {0}")]
    Malformed(httparse::Error),
    #[error("the request target is not a path")]
    Target,
    #[error("a request needs exactly one Host field")]
    Host,
    #[error("the request does not say in one clear way where its body ends")]
    Framing,
    #[error("a stream request has no body and nothing behind it")]
    NotAlone,
    #[error("request head is over {} bytes", limits::HEAD_BYTES_MAX)]
    TooLarge,
    #[error("request head has more than {} fields", limits::HEAD_FIELDS_MAX)]
    TooManyFields,
    #[error("request head was not complete within {} s", limits::HEAD_TIME.as_secs())]
    TooSlow,
}

impl HeadError {
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) | Self::Target | Self::Host | Self::Framing | Self::NotAlone => {
                StatusCode::BAD_REQUEST
            }
            Self::TooLarge | Self::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
        }
    }
}

/// Reads a head from the begin of `bytes`. `None`: not complete yet.
pub fn read_head(bytes: &[u8]) -> Result<Option<Head<'_>>, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; limits::HEAD_FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= limits::HEAD_BYTES_MAX => length,
        Ok(httparse::Status::Partial) if bytes.len() < limits::HEAD_BYTES_MAX => return Ok(None),
        Ok(_) => return Err(HeadError::TooLarge),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyFields),
        Err(error) => return Err(HeadError::Malformed(error)),
    };
    let (Some(method), Some(target), Some(minor_version)) =
        (request.method, request.path, request.version)
    else {
        return Err(HeadError::Target);
    };
    let (authority, target) = origin_form(target).ok_or(HeadError::Target)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let fields = request.headers.iter().map(|field| (field.name, field.value)).collect();
    let head = Head { method, path, query, authority, minor_version, fields, bytes: length };
    head.check()?;
    Ok(Some(head))
}

/// Whether the newly read bytes (from `fresh` on) may complete a head: they hold an empty line.
/// Saves parsing a slow head again for each of its bytes.
pub fn may_be_complete(bytes: &[u8], fresh: usize) -> bool {
    let tail = &bytes[fresh.saturating_sub(3)..];
    tail.windows(2).any(|pair| pair == b"\n\n") || tail.windows(3).any(|three| three == b"\n\r\n")
}

/// The path that a refused head asks for; empty if it was not read to its end, or is none.
pub fn path_of(bytes: &[u8]) -> &str {
    let is_line_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let start = bytes.iter().position(|byte| !is_line_end(byte)).unwrap_or(bytes.len());
    let mut words = bytes[start..].splitn(3, |byte| *byte == b' ');
    let (method, target) = (words.next().unwrap_or(b""), words.next().unwrap_or(b""));
    let is_whole = words.next().is_some() || target.contains(&b'?');
    if !is_whole || !method.iter().chain(target).all(u8::is_ascii_graphic) {
        return "";
    }
    let target = std::str::from_utf8(target).ok().and_then(origin_form);
    target.map_or("", |(_, target)| target.split('?').next().unwrap_or(""))
}

impl<'a> Head<'a> {
    pub fn is_stream(&self) -> bool {
        self.method == "GET" && STREAM_PATHS.contains(&self.path)
    }

    /// A head that was read says it in one way (`check`).
    pub fn body(&self) -> Body {
        if self.has("transfer-encoding") {
            return Body::Chunked;
        }
        Body::Length(self.text("content-length").and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// Values of every field of that name.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value)
    }

    /// The first value of that name, if it is text.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.values(name).next().and_then(|value| std::str::from_utf8(value).ok())
    }

    pub fn has(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// Names of all fields.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.fields.iter().map(|(name, _)| *name)
    }

    /// Whether the client says that it takes an event stream.
    pub fn accepts_event_stream(&self) -> bool {
        self.values("accept").filter_map(|value| std::str::from_utf8(value).ok()).any(|value| {
            value.split(',').any(|range| {
                let media_type = range.split(';').next().unwrap_or("").trim();
                media_type.eq_ignore_ascii_case("text/event-stream")
            })
        })
    }

    /// A stream has no body, and nothing may follow it: it would never be answered.
    pub fn check_alone(&self, bytes_read: usize) -> Result<(), HeadError> {
        let empty_body = self.values("content-length").all(|value| value == b"0");
        if bytes_read > self.bytes || !empty_body || self.has("transfer-encoding") {
            return Err(HeadError::NotAlone);
        }
        Ok(())
    }

    /// What every request must keep, whoever answers it.
    fn check(&self) -> Result<(), HeadError> {
        let hosts = self.values("host").count();
        if hosts > 1 || (hosts == 0 && self.minor_version > 0) {
            return Err(HeadError::Host);
        }
        let mut framings = 0;
        for length in self.values("content-length") {
            framings += 1;
            let digits = std::str::from_utf8(length).ok().filter(|text| !text.starts_with('+'));
            let length = digits.and_then(|digits| digits.parse::<u64>().ok());
            if length.is_none_or(|length| length > LENGTH_MAX) {
                return Err(HeadError::Framing);
            }
        }
        for coding in self.values("transfer-encoding") {
            framings += 1;
            if !coding.eq_ignore_ascii_case(b"chunked") || self.minor_version == 0 {
                return Err(HeadError::Framing);
            }
        }
        if framings > 1 { Err(HeadError::Framing) } else { Ok(()) }
    }
}

/// The path of a target, and the authority of one in absolute form (RFC 9112, section 3.2.2).
fn origin_form(target: &str) -> Option<(Option<&str>, &str)> {
    if target.starts_with('/') {
        return Some((None, target));
    }
    let rest = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"))?;
    rest.find('/').map(|slash| (Some(&rest[..slash]), &rest[slash..]))
}

/// Appends a whole response that ends the connection.
pub fn write_response(
    out: &mut Vec<u8>,
    status: StatusCode,
    content_type: &str,
    retry_after_s: Option<u32>,
    body: &[u8],
) {
    let reason = status.canonical_reason().unwrap_or("");
    out.extend_from_slice(
        format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\
             cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n",
            status.as_u16(),
            body.len()
        )
        .as_bytes(),
    );
    if let Some(seconds) = retry_after_s {
        out.extend_from_slice(format!("retry-after: {seconds}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn status_of(head: &str) -> Option<u16> {
        read_head(head.as_bytes()).err().map(|error| error.status().as_u16())
    }

    #[test]
    fn a_stream_request_is_recognised() {
        for (target, is_stream) in [
            ("/api/user/sse/connect?userId=a", true),
            ("/api/sse/connect", true),
            ("http://h/api/sse/connect?x", true),
            ("/api/sse/connect/", false),
            ("/api/user/messages", false),
        ] {
            let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            let head = read_head(text.as_bytes()).expect("well formed").expect("complete");
            assert_eq!(head.is_stream(), is_stream, "{target}");
            assert_eq!(head.bytes, text.len());
        }
        let post = "POST /api/sse/connect HTTP/1.1\r\nHost: h\r\n\r\n";
        assert!(!read_head(post.as_bytes()).expect("well formed").expect("complete").is_stream());
    }

    #[test]
    fn ambiguous_and_malformed_heads_are_refused() {
        for (head, status) in [
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
            ("\u{16}\u{3}\u{1}\u{2}", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\
                 Transfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775808\r\n\r\n", 400),
        ] {
            assert_eq!(status_of(head), Some(status), "{head:?}");
        }
        assert_eq!(status_of("GET / HTTP/1.0\r\n\r\n"), None);
    }

    #[test]
    fn heads_have_a_size_and_a_number_of_fields() {
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(16 * 1024));
        assert_eq!(status_of(&long), Some(431));
        assert_eq!(status_of(&long[..16 * 1024]), Some(431));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(64));
        assert_eq!(status_of(&many), Some(431));
        let just = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(63));
        assert_eq!(status_of(&just), None);
    }

    #[test]
    fn a_head_says_where_the_body_ends() {
        for (fields, body) in [
            ("", Body::Length(0)),
            ("Content-Length: 0\r\n", Body::Length(0)),
            ("content-length: 9223372036854775807\r\n", Body::Length(LENGTH_MAX)),
            ("Transfer-Encoding: Chunked\r\n", Body::Chunked),
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            let head = read_head(text.as_bytes()).expect("well formed").expect("complete");
            assert_eq!(head.body(), body, "{fields}");
        }
    }

    #[test]
    fn a_stream_stands_alone_on_its_connection() {
        for (head, alone) in [
            ("GET /api/sse/connect HTTP/1.1\r\nHost: a\r\n\r\n", true),
            ("GET /api/sse/connect HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", true),
            ("GET /api/sse/connect HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", false),
            (
                "GET /api/sse/connect HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
                false,
            ),
            ("GET /api/sse/connect HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n", false),
        ] {
            let read = read_head(head.as_bytes()).expect("well formed").expect("complete");
            assert_eq!(read.check_alone(head.len()).is_ok(), alone, "{head:?}");
        }
    }

    #[test]
    fn the_path_of_a_refused_head_is_told_where_it_can_be() {
        for (head, path) in [
            ("GET /a/b?c=/d HTTP/1.1\r\n\r\n", "/a/b"),
            ("\r\nGET /a HTTP/2.0\r\n", "/a"),
            ("GET http://h/a?b HTTP/1.1\r\nX : y", "/a"),
            ("GET /a b HTTP/1.1\r\n\r\n", "/a"),
            ("GET /a?cut", "/a"),
            ("GET /cut", ""),
            ("GET /\r\n\r\n", ""),
            ("GET /\u{0}a HTTP/1.1\r\n", ""),
            ("GET /é HTTP/1.1\r\n", ""),
            ("GET * HTTP/1.1\r\n", ""),
            ("GET http://h HTTP/1.1\r\n", ""),
            ("hello\r\nGET /a HTTP/1.1\r\n", ""),
            ("\u{16}\u{3}\u{1}\u{2}", ""),
            ("", ""),
        ] {
            assert_eq!(path_of(head.as_bytes()), path, "{head:?}");
        }
    }

    #[test]
    fn accept_is_read_by_its_media_types() {
        for (accept, accepts) in [
            ("text/event-stream", true),
            ("application/json, Text/Event-Stream;q=0.5", true),
            ("*/*", false),
            ("text/html", false),
        ] {
            let text = format!("GET / HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n");
            let head = read_head(text.as_bytes()).expect("well formed").expect("complete");
            assert_eq!(head.accepts_event_stream(), accepts, "{accept}");
        }
    }

    proptest! {
        /// However a head is cut, it is found complete exactly when its last byte is there.
        #[test]
        fn the_end_of_a_head_is_found_wherever_it_is_cut(cut in 1_usize..40) {
            let text = b"GET / HTTP/1.1\r\nHost: a\r\nx: y\r\n\r\n";
            let cut = cut.min(text.len() - 1);
            prop_assert!(!may_be_complete(&text[..cut], 0));
            prop_assert!(may_be_complete(text, cut));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = read_head(&bytes);
            let _ = path_of(&bytes);
        }
    }
}
