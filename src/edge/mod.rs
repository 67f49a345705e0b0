//! Floor 3, shard threads: the edge. Accepts connections, reads request heads, and says what each
//! one wants: a stream, something else, or nothing that makes sense.
//!
//! Every socket here is non-blocking and in the shard's one epoll set.

mod door;
mod listen;
mod request;
mod token;

pub use door::{Arrival, Door, DoorCounters, Visitor, head_of, watch};
pub use listen::listen;
pub use request::{AccessRules, RequestError, StreamRequest, read_stream_request};
pub use token::Token;
