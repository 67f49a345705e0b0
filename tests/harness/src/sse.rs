//! A client of streams that forgives nothing: whatever is not exactly a block of the contract's
//! form ends the test. Every read has a deadline.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::{Connection, End, PATIENCE, Response};

/// What a stream consists of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// `retry:` alone, milliseconds.
    Retry(u64),
    /// The text behind the colon.
    Comment(String),
    /// An `id:` without data: it only moves the cursor.
    Id(String),
    Event(Event),
    End(End),
}

/// A block with data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    pub id: Option<String>,
    pub name: String,
    pub data: Value,
}

impl Event {
    /// `content` of a MESSAGE.
    pub fn content(&self) -> &str {
        self.data["content"].as_str().unwrap_or_default()
    }
}

/// How a stream is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub path: &'a str,
    /// Not encoded any further.
    pub query: &'a str,
    pub fields: &'a [(&'a str, &'a str)],
}

/// An open stream, or what was answered instead.
#[derive(Debug)]
pub struct Stream {
    connection: Connection,
    pub head: Response,
    /// The last `id` that came, as an EventSource remembers it.
    pub last_id: Option<String>,
    patience: Duration,
}

impl Stream {
    /// Asks for a stream, and reads the head of the answer, which must be 200.
    pub fn open(address: SocketAddr, ask: &Ask<'_>) -> Self {
        let connection = Connection::open(address);
        let stream = Self::over(connection, address, ask).expect("an answer");
        assert_eq!(stream.head.status, 200, "{:?}", stream.head);
        stream
    }

    /// The same over a connection with options of its own, where the peer may go away.
    pub fn over(
        mut connection: Connection,
        address: SocketAddr,
        ask: &Ask<'_>,
    ) -> Result<Self, End> {
        connection.send(&request(address, ask)).map_err(|_| End::Reset)?;
        let head = connection.read_head(Instant::now() + PATIENCE)?;
        Ok(Self { connection, head, last_id: None, patience: PATIENCE })
    }

    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// What comes next. Panics if nothing comes in time.
    pub fn next_item(&mut self) -> Item {
        let deadline = Instant::now() + self.patience;
        // Nothing ends before this: what comes in many pieces is looked at once.
        let mut looked_at = 0;
        let end = loop {
            let buffer = self.connection.buffer();
            let rest = &buffer[looked_at..];
            if let Some(end) = rest.windows(2).position(|two| two == b"\n\n") {
                break looked_at + end;
            }
            looked_at = buffer.len().saturating_sub(1);
            if let Err(end) = self.connection.fill(deadline) {
                let rest = String::from_utf8_lossy(self.connection.buffer());
                // A node that was killed, or that closed a reader who stood still, may end it
                // anywhere; one that resets need not have said all.
                if !rest.is_empty() {
                    let rest = rest.into_owned();
                    self.connection.take(rest.len());
                    assert!(!rest.starts_with('\n'), "an empty line too many: {rest:?}");
                }
                return Item::End(end);
            }
        };
        let block = self.connection.take(end + 2);
        let block = String::from_utf8(block).expect("a stream is UTF-8");
        let item = parse(block.trim_end_matches('\n'));
        if let Item::Id(id) | Item::Event(Event { id: Some(id), .. }) = &item {
            self.last_id = Some(id.clone());
        }
        item
    }

    /// Reads `retry:` and CONNECTED, which must come first; returns both.
    pub fn connected(&mut self) -> (u64, Event) {
        let retry = match self.next_item() {
            Item::Retry(retry) => retry,
            other => panic!("retry comes first, not {other:?}"),
        };
        match self.next_item() {
            Item::Event(event) if event.name == "CONNECTED" => (retry, event),
            other => panic!("CONNECTED comes behind retry, not {other:?}"),
        }
    }

    /// The next event; heartbeats and ids are passed over. `None` at the end. Panics if none comes
    /// in time, however many heartbeats do.
    pub fn next_event(&mut self) -> Option<Event> {
        let deadline = Instant::now() + self.patience;
        loop {
            assert!(Instant::now() < deadline, "heartbeats, and no event in {:?}", self.patience);
            match self.next_item() {
                Item::Event(event) => return Some(event),
                Item::End(_) => return None,
                Item::Comment(_) | Item::Id(_) => {}
                Item::Retry(retry) => panic!("retry: {retry} in the middle of a stream"),
            }
        }
    }

    /// The next event, which must be a MESSAGE.
    pub fn message(&mut self) -> Event {
        match self.next_event() {
            Some(event) if event.name == "MESSAGE" => event,
            other => panic!("a MESSAGE was to come, not {other:?}"),
        }
    }

    /// Contents of the messages that come before the one whose content is `marker`.
    pub fn contents_until(&mut self, marker: &str) -> Vec<String> {
        let mut contents = Vec::new();
        loop {
            let message = self.message();
            if message.content() == marker {
                return contents;
            }
            contents.push(message.content().to_owned());
        }
    }

    /// Waits for the end, past whatever comes before.
    pub fn wait_for_end(&mut self) -> End {
        loop {
            if let Item::End(end) = self.next_item() {
                return end;
            }
        }
    }
}

/// The bytes of a request for a stream.
pub fn request(address: SocketAddr, ask: &Ask<'_>) -> Vec<u8> {
    let Ask { path, query, fields } = ask;
    let mut text = format!(
        "GET {path}?{query} HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n\
         cache-control: no-store\r\n"
    );
    for (name, value) in *fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// Reads a block, without its empty line, strictly: the fields that the contract has, in its
/// order, one blank behind each colon.
fn parse(block: &str) -> Item {
    assert!(!block.contains('\r'), "lines end by LF alone: {block:?}");
    let lines: Vec<&str> = block.split('\n').collect();
    let value = |line: &'_ str, name: &str| {
        line.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")).map(str::to_owned)
    };
    if let [line] = lines[..] {
        if let Some(text) = line.strip_prefix(':') {
            return Item::Comment(text.to_owned());
        }
        if let Some(retry) = value(line, "retry") {
            return Item::Retry(retry.parse().expect("milliseconds"));
        }
        if let Some(id) = value(line, "id") {
            return Item::Id(id);
        }
    }
    let (id, rest) = match lines.split_first() {
        Some((first, rest)) if first.starts_with("id: ") => (value(first, "id"), rest),
        _ => (None, &lines[..]),
    };
    let [name, data] = rest else { panic!("no block of a stream: {block:?}") };
    let name = value(name, "event").unwrap_or_else(|| panic!("no event: {block:?}"));
    let data = value(data, "data").unwrap_or_else(|| panic!("no data: {block:?}"));
    let data = serde_json::from_str(&data).unwrap_or_else(|error| panic!("{error}: {block:?}"));
    Item::Event(Event { id, name, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read() {
        assert_eq!(parse("retry: 2500"), Item::Retry(2_500));
        assert_eq!(parse(":"), Item::Comment(String::new()));
        assert_eq!(parse("id: abc"), Item::Id("abc".to_owned()));
        let data = serde_json::json!({"a": 1});
        let event = Event { id: Some("x".to_owned()), name: "GAP".to_owned(), data };
        assert_eq!(parse("id: x\nevent: GAP\ndata: {\"a\":1}"), Item::Event(event));
    }

    #[test]
    fn what_is_no_block_is_not_forgiven() {
        for bad in [
            "data: {}",
            "event: MESSAGE\nid: x\ndata: {}",
            "id: x\nevent: MESSAGE\ndata: {}\ndata: {}",
            "event:MESSAGE\ndata: {}",
            "event: MESSAGE\r\ndata: {}",
            "event: MESSAGE\ndata: {",
            "hello",
            "",
        ] {
            assert!(std::panic::catch_unwind(|| parse(bad)).is_err(), "{bad:?}");
        }
    }
}
