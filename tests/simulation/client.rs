//! A client: reads the bytes of its socket as an EventSource does, and remembers what it got.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::BufRead as _;
use std::rc::Rc;

use corecast::base::{BroadcastId, EpochMillis, Moment, Position, Topic, UserId};
use corecast::ports::Hole;
use corecast::wire::cursor::Cursor;

use crate::sky::{REPLACED, REPLACED_START, SHAPE};

/// When a write began: in truth, and as the node's calendar had it.
#[derive(Clone, Copy, Debug)]
pub struct Began {
    pub at: Moment,
    pub wall: EpochMillis,
}

/// The kernel between a stream and its client. Shared by both ends.
pub type Socket = Rc<RefCell<Kernel>>;

#[derive(Debug, Default)]
pub struct Kernel {
    /// Bytes that it takes now; `None`: any number.
    pub room: Option<usize>,
    /// Bytes on their way, with when their write began.
    pub in_flight: VecDeque<(Began, Vec<u8>)>,
    pub is_dead: bool,
    /// What was on its way when it died had been acknowledged, though nobody has read it.
    pub is_acknowledged: bool,
    /// A write found no room, so an edge has to be reported when there is some.
    pub wants_edge: bool,
}

/// Bytes of which the node does not know that they have arrived.
pub fn unsent(socket: &Socket) -> u64 {
    let kernel = socket.borrow();
    if kernel.is_acknowledged {
        return 0;
    }
    kernel.in_flight.iter().map(|(_, bytes)| bytes.len() as u64).sum()
}

/// What a client got of one block of the stream.
#[derive(Debug)]
pub struct Block {
    pub id: Option<Cursor>,
    pub event: Option<String>,
    pub data: String,
    /// It says when to come back.
    pub has_retry: bool,
    /// When the write of its first byte began.
    pub begun: Began,
}

/// Splits bytes into blocks, as the HTML standard's "interpreting an event stream" does.
#[derive(Clone, Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    id: Option<String>,
    event: Option<String>,
    data: String,
    has_retry: bool,
    begun: Option<Began>,
    head_is_over: bool,
}

impl Parser {
    pub fn feed(&mut self, at: Began, mut bytes: &[u8], mut each: impl FnMut(Block)) {
        while !bytes.is_empty() {
            self.begun.get_or_insert(at);
            bytes.read_until(b'\n', &mut self.line).expect("memory can be read");
            if self.line.pop_if(|last| *last == b'\n').is_none() {
                break;
            }
            let line = String::from_utf8(std::mem::take(&mut self.line)).expect("UTF-8");
            if !self.head_is_over {
                self.head_is_over = line == "\r" || line.is_empty();
                self.begun = None;
                continue;
            }
            if !line.is_empty() {
                self.take_line(&line);
                continue;
            }
            let begun = self.begun.take().unwrap_or(at);
            let block = Block {
                id: self.id.take().map(|id| Cursor::parse(&id).expect("ids are cursors")),
                event: self.event.take(),
                data: std::mem::take(&mut self.data),
                has_retry: std::mem::take(&mut self.has_retry),
                begun,
            };
            each(block);
        }
    }

    fn take_line(&mut self, line: &str) {
        match line.split_once(':') {
            Some(("", _)) => {}
            Some(("id", value)) => self.id = Some(value.trim_start().to_owned()),
            Some(("event", value)) => self.event = Some(value.trim_start().to_owned()),
            Some(("data", value)) => self.data.push_str(value.trim_start()),
            Some(("retry", value)) => {
                assert!(value.trim().parse::<u64>().is_ok(), "retry is a number: {line}");
                self.has_retry = true;
            }
            _ => panic!("a line that no frame has: {line:?}"),
        }
    }
}

/// What a MESSAGE says.
pub struct Said {
    pub broadcast: BroadcastId,
    pub user: Option<UserId>,
    pub content: String,
}

pub fn said(data: &str) -> Said {
    let data: serde_json::Value = serde_json::from_str(data).expect("data is JSON");
    let broadcast = data["broadcastId"].as_u64().and_then(BroadcastId::new).expect("an id");
    let user = data["userId"].as_str().map(|user| UserId::new(user).expect("a user id"));
    let content = data["content"].as_str().expect("content").to_owned();
    Said { broadcast, user, content }
}

/// What READ_RECEIPT and MESSAGE_REMOVED are about.
pub fn about(data: &str) -> BroadcastId {
    let data: serde_json::Value = serde_json::from_str(data).expect("data is JSON");
    data["broadcastId"].as_u64().and_then(BroadcastId::new).expect("an id")
}

/// Whether each component of the later cursor is at least that of the earlier one, if they are of
/// one log.
pub fn never_falls(earlier: &Cursor, later: &Cursor) -> bool {
    if earlier.shape != later.shape {
        return earlier.shape == SHAPE && later.shape == REPLACED;
    }
    earlier.own <= later.own && earlier.group.iter().zip(&later.group).all(|(old, new)| old <= new)
}

/// Whether the record at this place lies before the cursor.
pub fn is_covered(cursor: &Cursor, position: Position) -> bool {
    match position.partition.topic {
        Topic::Group => position.offset < cursor.group[usize::from(position.partition.index)],
        Topic::Selected => {
            position.partition.index == cursor.own_partition && position.offset < cursor.own
        }
        Topic::SelectedDead | Topic::GroupDead | Topic::Control => false,
    }
}

/// Whether the cursor is one of the log in which this place is.
pub fn is_of_log(cursor: &Cursor, position: Position) -> bool {
    (cursor.shape == REPLACED) == (position.offset >= REPLACED_START)
}

/// Whether something of the hole lies behind the cursor, and concerns its user.
pub fn is_before(cursor: &Cursor, hole: &Hole) -> bool {
    let (partition, offset) = (hole.partition, hole.to - 1);
    let end = Position { partition, offset };
    let is_his = partition.topic == Topic::Group || partition.index == cursor.own_partition;
    is_his && is_of_log(cursor, end) && !is_covered(cursor, end)
}
