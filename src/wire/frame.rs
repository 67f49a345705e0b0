//! Frames of the stream: what stands between the `id` line and the empty line.
//!
//! Data is one line of JSON, so that no text, name or id can end a field or forge an event: JSON
//! escapes every control character, and nothing but the types below goes into a frame
//! (`tests/golden/frames/`). Pure; any thread.

use std::time::Duration;

use serde::Serialize;

use crate::base::{BroadcastId, EpochMillis, Priority};

/// The body of MESSAGE: contract section 4.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    pub broadcast_id: BroadcastId,
    /// `None` for a group audience, whose members share one body.
    pub user_id: Option<&'a str>,
    pub correlation_id: Option<&'a str>,
    pub delivery_status: &'a str,
    pub read_status: &'a str,
    pub delivered_at: Option<EpochMillis>,
    pub read_at: Option<EpochMillis>,
    pub created_at: Option<EpochMillis>,
    pub sender_name: Option<&'a str>,
    pub content: &'a str,
    pub priority: Priority,
    pub category: Option<&'a str>,
    pub broadcast_created_at: Option<EpochMillis>,
    pub scheduled_at: Option<EpochMillis>,
    pub expires_at: Option<EpochMillis>,
}

impl Message<'_> {
    /// Appends the JSON object: the contract's fields in its order, nulls written. By hand,
    /// because every event pays for it: a serialiser takes four times as long.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"userMessageId\":");
        match self.user_id {
            Some(user) => {
                out.push(b'"');
                write_number(out, self.broadcast_id.get());
                out.push(b':');
                write_escaped(out, user);
                out.push(b'"');
            }
            None => out.extend_from_slice(NULL),
        }
        out.extend_from_slice(b",\"broadcastId\":");
        write_number(out, self.broadcast_id.get());
        write_text(out, ",\"userId\":", self.user_id);
        write_text(out, ",\"correlationId\":", self.correlation_id);
        write_text(out, ",\"deliveryStatus\":", Some(self.delivery_status));
        write_text(out, ",\"readStatus\":", Some(self.read_status));
        write_date(out, ",\"deliveredAt\":", self.delivered_at);
        write_date(out, ",\"readAt\":", self.read_at);
        write_date(out, ",\"createdAt\":", self.created_at);
        write_text(out, ",\"senderName\":", self.sender_name);
        write_text(out, ",\"content\":", Some(self.content));
        write_text(out, ",\"priority\":", Some(self.priority.word()));
        write_text(out, ",\"category\":", self.category);
        write_date(out, ",\"broadcastCreatedAt\":", self.broadcast_created_at);
        write_date(out, ",\"scheduledAt\":", self.scheduled_at);
        write_date(out, ",\"expiresAt\":", self.expires_at);
        out.push(b'}');
    }
}

/// Why something can't be replayed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum GapReason {
    /// The log keeps it no longer.
    Retention,
    /// The log is another one.
    LogReplaced,
    /// It is more than a stream may have replayed.
    Limit,
}

pub fn write_message(out: &mut Vec<u8>, message: &Message<'_>) {
    begin_frame(out, "MESSAGE");
    message.write_json(out);
    out.extend_from_slice(b"\n\n");
}

pub fn write_read_receipt(out: &mut Vec<u8>, broadcast: BroadcastId) {
    write_about(out, "READ_RECEIPT", broadcast);
}

pub fn write_message_removed(out: &mut Vec<u8>, broadcast: BroadcastId) {
    write_about(out, "MESSAGE_REMOVED", broadcast);
}

fn write_about(out: &mut Vec<u8>, name: &str, broadcast: BroadcastId) {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Data {
        broadcast_id: BroadcastId,
    }
    write_frame(out, name, &Data { broadcast_id: broadcast });
}

/// `connection` as the client spells it.
pub fn write_connected(out: &mut Vec<u8>, connection: &str, at: EpochMillis) {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Data<'a> {
        message: &'a str,
        connection_id: &'a str,
        timestamp: EpochMillis,
    }
    let data = Data { message: "connected", connection_id: connection, timestamp: at };
    write_frame(out, "CONNECTED", &data);
}

pub fn write_gap(out: &mut Vec<u8>, from: EpochMillis, to: EpochMillis, reason: GapReason) {
    #[derive(Serialize)]
    struct Data {
        from: EpochMillis,
        to: EpochMillis,
        reason: GapReason,
    }
    write_frame(out, "GAP", &Data { from, to, reason });
}

pub fn write_server_shutdown(out: &mut Vec<u8>, reconnect_after: Duration) {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Data {
        reconnect_after_ms: u64,
    }
    let reconnect_after_ms = reconnect_after.as_millis() as u64;
    write_frame(out, "SERVER_SHUTDOWN", &Data { reconnect_after_ms });
}

/// How long a client waits before it comes back.
pub fn write_retry(out: &mut Vec<u8>, after: Duration) {
    out.extend_from_slice(format!("retry: {}\n\n", after.as_millis()).as_bytes());
}

/// A comment: it says that the stream lives.
pub fn write_heartbeat(out: &mut Vec<u8>) {
    out.extend_from_slice(b":\n\n");
}

fn write_frame(out: &mut Vec<u8>, name: &str, data: &impl Serialize) {
    begin_frame(out, name);
    serde_json::to_writer(&mut *out, data).expect("these shapes are JSON, and a Vec takes all");
    out.extend_from_slice(b"\n\n");
}

fn begin_frame(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
}

const NULL: &[u8] = b"null";

/// `before` holds the comma, the name and the colon. Inlined, so that its length is known.
#[inline(always)]
fn write_text(out: &mut Vec<u8>, before: &str, text: Option<&str>) {
    out.extend_from_slice(before.as_bytes());
    match text {
        Some(text) => {
            out.push(b'"');
            write_escaped(out, text);
            out.push(b'"');
        }
        None => out.extend_from_slice(NULL),
    }
}

#[inline(always)]
fn write_date(out: &mut Vec<u8>, before: &str, at: Option<EpochMillis>) {
    out.extend_from_slice(before.as_bytes());
    match at {
        Some(at) => {
            out.push(b'"');
            out.extend_from_slice(&at.to_iso());
            out.push(b'"');
        }
        None => out.extend_from_slice(NULL),
    }
}

/// What stands between the quotes of a JSON string.
fn write_escaped(out: &mut Vec<u8>, text: &str) {
    if is_plain(text.as_bytes()) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    let start = out.len();
    serde_json::to_writer(&mut *out, text).expect("a text is JSON, and a Vec takes all");
    out.pop();
    out.remove(start);
}

/// Whether JSON writes the text as it is.
fn is_plain(text: &[u8]) -> bool {
    // In pieces of one length, without a way out within, the compiler looks at a piece at once;
    // the last one may overlap the one before.
    let is_plain = |piece: &[u8; 16]| !piece.iter().fold(false, |any, byte| any | escapes(*byte));
    match text.last_chunk() {
        Some(last) => text.as_chunks().0.iter().all(is_plain) && is_plain(last),
        None => !text.iter().any(|byte| escapes(*byte)),
    }
}

const fn escapes(byte: u8) -> bool {
    byte < b' ' || byte == b'"' || byte == b'\\'
}

fn write_number(out: &mut Vec<u8>, number: u64) {
    serde_json::to_writer(out, &number).expect("a number is JSON, and a Vec takes all");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AT: EpochMillis = EpochMillis(1_795_514_400_000);

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("frames are UTF-8")
    }

    fn group_message() -> Message<'static> {
        Message {
            broadcast_id: BroadcastId::new(123_456_789).expect("small"),
            user_id: None,
            correlation_id: Some("c-1"),
            delivery_status: "PENDING",
            read_status: "UNREAD",
            delivered_at: None,
            read_at: None,
            created_at: Some(EpochMillis(AT.0 + 123)),
            sender_name: Some("Ops"),
            content: "line 1\nline 2 \"quoted\" \0 \u{2028} end",
            priority: Priority::High,
            category: Some("Maintenance"),
            broadcast_created_at: Some(AT),
            scheduled_at: None,
            expires_at: EpochMillis::parse_iso("2026-12-24T10:00:00Z"),
        }
    }

    #[test]
    fn golden_frames() {
        macro_rules! golden {
            ($name:literal) => {
                include_str!(concat!("../../tests/golden/frames/", $name, ".sse"))
            };
        }
        let targeted = Message {
            broadcast_id: BroadcastId::new(42).expect("small"),
            user_id: Some("alice"),
            correlation_id: None,
            sender_name: None,
            content: "hello",
            priority: Priority::Normal,
            category: None,
            broadcast_created_at: None,
            expires_at: None,
            ..group_message()
        };
        let broadcast = BroadcastId::new(42).expect("small");
        let hour_ago = EpochMillis(AT.0 - 3_600_000);
        for (frame, golden) in [
            (written(|out| write_message(out, &group_message())), golden!("message-group")),
            (written(|out| write_message(out, &targeted)), golden!("message-targeted")),
            (written(|out| write_read_receipt(out, broadcast)), golden!("read-receipt")),
            (written(|out| write_message_removed(out, broadcast)), golden!("message-removed")),
            (written(|out| write_connected(out, "tab-1", AT)), golden!("connected")),
            (written(|out| write_gap(out, hour_ago, AT, GapReason::Limit)), golden!("gap")),
            (
                written(|out| write_server_shutdown(out, Duration::from_millis(1_500))),
                golden!("server-shutdown"),
            ),
            (written(|out| write_retry(out, Duration::from_millis(2_500))), golden!("retry")),
            (written(write_heartbeat), golden!("heartbeat")),
        ] {
            assert_eq!(frame, golden);
        }
    }

    proptest! {
        /// Whatever is published: three lines, one event.
        #[test]
        fn no_text_ends_its_line(
            content in "(\\PC|\r|\n|\r\n|\u{0}|\u{feff}|\u{2028}|data: |event: x|id: y|:){0,40}",
            name in "(\\PC|\r|\n|\u{85}){0,20}",
        ) {
            let message = Message {
                broadcast_id: BroadcastId::new(42).expect("small"), user_id: Some(&name),
                content: &content, sender_name: Some(&name), category: Some(&name),
                correlation_id: Some(&name), ..group_message()
            };
            let frame = written(|out| write_message(out, &message));
            let lines: Vec<&str> = frame.split(['\n', '\r']).collect();
            prop_assert_eq!(lines.len(), 4);
            prop_assert_eq!(lines[0], "event: MESSAGE");
            let has_data = lines[1].starts_with("data: {");
            prop_assert!(has_data && lines[2..] == ["", ""]);
            let data: serde_json::Value = serde_json::from_str(&lines[1][6..]).expect("JSON");
            prop_assert_eq!(&data["content"], &serde_json::json!(content));
            prop_assert_eq!(&data["senderName"], &serde_json::json!(name));
            prop_assert_eq!(&data["userMessageId"], &serde_json::json!(format!("42:{name}")));
        }
    }
}
