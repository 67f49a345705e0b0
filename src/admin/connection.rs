//! Connections: hyper's HTTP/1 over what the admin listener accepts and what the edge hands over.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use bytes::{Bytes, BytesMut};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::checked::{Checked, Refuse};
use super::rewind::Rewind;
use super::{AdminState, admin_router, public_router};
use crate::base::EpochMillis;
use crate::control::Handover;
use crate::limits::{admin as limits, edge};
use crate::ops::metrics::CallCounters;
use crate::ports::Descriptors;
use crate::wire::api;
use crate::wire::head::{self, HeadError};

/// Accepts on the admin listener until the process ends.
pub async fn serve_admin(listener: TcpListener, state: AdminState) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (clock, counters) = (state.clock.clone(), state.metrics.calls.clone());
    let router = admin_router(state);
    let connections = limits::CONNECTIONS_MAX.min(Descriptors::of_process().admin);
    let heads_max = (connections / limits::HEADS_PART).max(1);
    let room = Arc::new(Semaphore::new(connections.saturating_sub(heads_max).max(1)));
    let mut heads = Heads { most: heads_max, open: VecDeque::new(), counters };
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                heads.make_room().await;
                let (router, clock, room) = (router.clone(), clock.clone(), room.clone());
                let refuse = move |error, head: &[u8]| refusal(error, head, clock.wall());
                let head = tokio::spawn(async move {
                    let Some(checked) = read_first_head(socket, Box::new(refuse)).await else {
                        return;
                    };
                    let Ok(permit) = room.acquire_owned().await else { return };
                    tokio::spawn(async move {
                        serve(checked, router, true).await;
                        drop(permit);
                    });
                });
                heads.open.push_back((Instant::now(), head.abort_handle()));
            }
            Err(error) => {
                tracing::warn!(%error, "the admin listener can't accept");
                tokio::time::sleep(edge::ACCEPT_REST).await;
            }
        }
    }
}

/// Connections of the admin listener whose first head is not here, or waits for its turn; the
/// oldest first.
struct Heads {
    most: usize,
    open: VecDeque<(Instant, AbortHandle)>,
    counters: Arc<CallCounters>,
}

impl Heads {
    /// Closes the oldest, if there are too many. An honest head comes with the first packet, and
    /// has the time to be read.
    async fn make_room(&mut self) {
        if self.open.len() < self.most {
            return;
        }
        self.open.retain(|(_, head)| !head.is_finished());
        if self.open.len() < self.most {
            return;
        }
        if let Some((since, oldest)) = self.open.pop_front() {
            tokio::time::sleep_until(since + limits::HEAD_GRACE).await;
            if !oldest.is_finished() {
                oldest.abort();
                self.counters.evicted.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// What is called with the number of a shard.
type Told = Box<dyn Fn(u16) + Send + Sync>;

/// Takes connections of the public listener from the edge. Lives on the control threads.
pub struct PublicCalls {
    router: Router,
    serving: Told,
    drained: Told,
    room: Arc<Semaphore>,
    counters: Arc<CallCounters>,
}

impl PublicCalls {
    /// `serving` is called when a shard serves streams, `drained` when it has none any more.
    pub fn new(state: AdminState, serving: Told, drained: Told) -> Self {
        let calls = limits::PUBLIC_CALLS_MAX.min(Descriptors::of_process().calls);
        let room = Arc::new(Semaphore::new(calls));
        let counters = state.metrics.calls.clone();
        Self { router: public_router(state), serving, drained, room, counters }
    }
}

impl Handover for PublicCalls {
    fn handle_request(&self, socket: OwnedFd, bytes: Bytes) {
        // Without room the connection is closed: its client has sent one request and may repeat it.
        let Ok(permit) = self.room.clone().try_acquire_owned() else {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let socket = TcpStream::from_std(std::net::TcpStream::from(socket));
        let router = self.router.clone();
        match socket {
            Ok(socket) => {
                tokio::spawn(async move {
                    serve(Rewind::new(bytes, socket), router, false).await;
                    drop(permit);
                });
            }
            Err(error) => tracing::warn!(%error, "a connection could not be taken over"),
        }
    }

    fn handle_serving(&self, shard: u16) {
        (self.serving)(shard);
    }

    fn handle_drained(&self, shard: u16) {
        (self.drained)(shard);
    }
}

/// Reads the first head of a connection, because one that is slow is answered, which hyper would
/// not do. Between two requests a connection is closed without a word.
async fn read_first_head(mut socket: TcpStream, refuse: Refuse) -> Option<Checked> {
    let mut bytes = BytesMut::with_capacity(1_024);
    let read = async {
        loop {
            let fresh = bytes.len();
            if !matches!(socket.read_buf(&mut bytes).await, Ok(1..)) {
                return false;
            }
            let look = fresh == 0
                || head::may_be_complete(&bytes, fresh)
                || bytes.len() >= edge::HEAD_BYTES_MAX;
            // Whether it is right is seen again when it passes.
            if look && !matches!(head::read_head(&bytes), Ok(None)) {
                return true;
            }
        }
    };
    match tokio::time::timeout(edge::HEAD_TIME, read).await {
        Ok(true) => Some(Checked::new(socket, bytes, refuse)),
        Ok(false) => None,
        Err(_) => {
            let answer = refuse(HeadError::TooSlow, &bytes);
            let sent = async {
                // What still comes is read, so that no reset overtakes the answer.
                if socket.write_all(&answer).await.is_ok() && socket.shutdown().await.is_ok() {
                    let mut scratch = [0; 4 * 1024];
                    while matches!(socket.read(&mut scratch).await, Ok(1..)) {}
                }
            };
            let _ = tokio::time::timeout(edge::LINGER_TIME, sent).await;
            None
        }
    }
}

fn refusal(error: HeadError, head: &[u8], at: EpochMillis) -> Vec<u8> {
    let path = head::path_of(head);
    let body = api::error_body(error.status(), &error.to_string(), path, at);
    let mut answer = Vec::new();
    head::write_response(&mut answer, error.status(), api::JSON, None, &body);
    answer
}

/// Serves one connection to its end. On the public side that is one request: the next one might
/// be a stream, and streams never live here.
async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    keep_alive: bool,
) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(edge::HEAD_TIME)
        .max_buf_size(edge::HEAD_BYTES_MAX)
        .keep_alive(keep_alive)
        // A head that is refused ends what hyper reads; what was asked before it is answered first.
        .half_close(true)
        .serve_connection(TokioIo::new(io), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_without_room_is_closed_and_counted() {
        use std::io::Read as _;
        let counters = Arc::<CallCounters>::default();
        let calls = PublicCalls {
            router: Router::new(),
            serving: Box::new(|_| ()),
            drained: Box::new(|_| ()),
            room: Arc::new(Semaphore::new(0)),
            counters: counters.clone(),
        };
        let (mut client, node) = std::os::unix::net::UnixStream::pair().expect("two sockets");
        calls.handle_request(node.into(), Bytes::new());
        assert_eq!(client.read(&mut [0]).expect("an end"), 0);
        assert_eq!(counters.dropped.load(Ordering::Relaxed), 1);
    }
}
