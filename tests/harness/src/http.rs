//! HTTP/1.1 from outside, byte by byte: what goes out is what the test says, what comes in is read
//! strictly. Every read has a deadline.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{AddressFamily, SocketType};
use serde_json::Value;

/// How long an answer may take where the test does not say otherwise. A machine that compiles
/// beside the tests is slow.
pub const PATIENCE: Duration = Duration::from_secs(20);
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// An answer, whole.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The peer sent all it had and closed.
    Closed,
    /// What the peer still had to say is lost.
    Reset,
}

/// A connection of which the test says every byte.
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Response {
    /// The first value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics if it is none.
    pub fn json(&self) -> Value {
        assert_eq!(self.field("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The body of an answer that must be a success.
    pub fn expect_json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The message of an error, which must have the one shape that errors have.
    pub fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{:.300}", self.text());
        let body = self.json();
        let fields = body.as_object().expect("an object");
        let mut names: Vec<&str> = fields.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["error", "message", "path", "status", "timestamp"], "{body}");
        assert_eq!(body["status"], status, "{body}");
        assert!(is_instant(body["timestamp"].as_str()), "{body}");
        for name in ["error", "path"] {
            assert!(body[name].is_string(), "{name} is a string: {body}");
        }
        let message = body["message"].as_str().expect("a string");
        assert!(!message.is_empty(), "{body}");
        message.to_owned()
    }
}

/// Whether this is an instant as every date of the contract is written: milliseconds and `Z`.
pub fn is_instant(text: Option<&str>) -> bool {
    const SHAPE: &[u8] = b"dddd-dd-ddTdd:dd:dd.dddZ";
    text.is_some_and(|text| {
        text.len() == SHAPE.len()
            && text.bytes().zip(SHAPE).all(|(byte, shape)| match shape {
                b'd' => byte.is_ascii_digit(),
                other => byte == *other,
            })
    })
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).expect("somebody listens");
        Self::over(socket)
    }

    /// With a receive buffer as small as the kernel makes one, so that a reader who stands still
    /// is full soon.
    pub fn narrow(address: SocketAddr) -> Self {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = rustix::net::socket(family, SocketType::STREAM, None).expect("a socket");
        set_socket_recv_buffer_size(&socket, 4 * 1024).expect("an option of sockets");
        rustix::net::connect(&socket, &address).expect("somebody listens");
        Self::over(TcpStream::from(socket))
    }

    /// Over a socket with options of its own.
    pub fn over(socket: TcpStream) -> Self {
        socket.set_nodelay(true).expect("an option of TCP");
        socket.set_write_timeout(Some(PATIENCE)).expect("an option of sockets");
        Self { socket, buffer: Vec::new() }
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub fn local_address(&self) -> SocketAddr {
        self.socket.local_addr().expect("connected")
    }

    /// Sends; an error if the peer takes no more.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// Says that nothing more will come.
    pub fn finish_sending(&self) {
        self.socket.shutdown(Shutdown::Write).expect("connected");
    }

    /// Bytes that came and were not taken.
    pub fn buffer(&self) -> &[u8] {
        &self.buffer
    }

    pub fn take(&mut self, bytes: usize) -> Vec<u8> {
        self.buffer.drain(..bytes).collect()
    }

    /// Reads once into the buffer. Panics at the deadline.
    pub fn fill(&mut self, deadline: Instant) -> Result<(), End> {
        self.try_fill(deadline).unwrap_or_else(|| {
            let text = String::from_utf8_lossy(&self.buffer);
            panic!("the deadline has passed; what came and was not taken: {text:?}")
        })
    }

    /// Reads once into the buffer; `None` at the deadline.
    pub fn try_fill(&mut self, deadline: Instant) -> Option<Result<(), End>> {
        let mut bytes = [0; 16 * 1024];
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return None;
            }
            self.socket.set_read_timeout(Some(rest)).expect("an option of sockets");
            match self.socket.read(&mut bytes) {
                Ok(0) => return Some(Err(End::Closed)),
                Ok(read) => {
                    self.buffer.extend_from_slice(&bytes[..read]);
                    return Some(Ok(()));
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                        return Some(Err(End::Reset));
                    }
                    _ => panic!("reading: {error}"),
                },
            }
        }
    }

    /// Reads the head of a response: status, fields.
    pub fn read_head(&mut self, deadline: Instant) -> Result<Response, End> {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            assert!(self.buffer.len() < HEAD_BYTES_MAX, "a head has an end");
            self.fill(deadline)?;
        };
        let head = self.take(end + 4);
        let head = String::from_utf8(head).expect("a head is text");
        let mut lines = head.trim_end_matches("\r\n").split("\r\n");
        let status_line = lines.next().expect("a status line");
        let mut words = status_line.splitn(3, ' ');
        assert_eq!(words.next(), Some("HTTP/1.1"), "{status_line}");
        let status = words.next().and_then(|word| word.parse().ok());
        let fields = lines.map(|line| {
            let (name, value) = line.split_once(':').expect("a field");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        });
        let fields = fields.collect();
        Ok(Response { status: status.expect("a status"), fields, body: Vec::new() })
    }

    /// Reads a whole response with a length.
    pub fn read_response(&mut self, at_most: Duration) -> Result<Response, End> {
        let deadline = Instant::now() + at_most;
        let mut response = self.read_head(deadline)?;
        assert_eq!(response.field("transfer-encoding"), None, "{response:?}");
        if response.status == 204 {
            // It has no body (RFC 9110, section 15.3.5).
            return Ok(response);
        }
        let length = response.field("content-length").expect("a length");
        let length: usize = length.parse().expect("a length");
        while self.buffer.len() < length {
            self.fill(deadline)?;
        }
        response.body = self.take(length);
        Ok(response)
    }

    /// Waits until the peer has closed. Panics if it sends anything before.
    pub fn wait_for_end(&mut self, at_most: Duration) -> End {
        assert_eq!(String::from_utf8_lossy(&self.buffer), "", "nothing more comes");
        match self.fill(Instant::now() + at_most) {
            Err(end) => end,
            Ok(()) => panic!("more came: {:?}", String::from_utf8_lossy(&self.buffer)),
        }
    }
}

/// Sends these bytes and reads one response, behind which the connection must end.
pub fn exchange(address: SocketAddr, bytes: &[u8]) -> Response {
    let mut connection = Connection::open(address);
    // Who refuses what came first need not take the rest.
    let _ = connection.send(bytes);
    let response = connection.read_response(PATIENCE).expect("an answer");
    connection.wait_for_end(PATIENCE);
    response
}

/// One call on a connection of its own.
pub fn call(
    address: SocketAddr,
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
    body: Option<&[u8]>,
) -> Response {
    try_call(address, method, target, fields, body).expect("an answer")
}

/// The same, where the peer may go away before it has answered.
pub fn try_call(
    address: SocketAddr,
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
    body: Option<&[u8]>,
) -> Option<Response> {
    let socket = TcpStream::connect(address).ok()?;
    let mut connection = Connection::over(socket);
    connection.send(&request(address, method, target, fields, body)).ok()?;
    connection.read_response(PATIENCE).ok()
}

/// The bytes of a request after which the connection is to be closed.
pub fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
    body: Option<&[u8]>,
) -> Vec<u8> {
    let mut text =
        format!("{method} {target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = body {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body.unwrap_or_default());
    bytes
}
