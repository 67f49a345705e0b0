//! Connections: hyper's HTTP/1 over what the admin listener accepts and what the edge hands over.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use axum::Router;
use bytes::{Bytes, BytesMut};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::rewind::Rewind;
use super::{AdminState, admin_router, public_router};
use crate::control::Handover;
use crate::limits::{admin as limits, edge};
use crate::ports::Clock;
use crate::wire::api;
use crate::wire::head::{self, HeadError};

/// Accepts on the admin listener until the process ends.
pub async fn serve_admin(listener: TcpListener, state: AdminState) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let clock = state.clock.clone();
    let router = admin_router(state);
    let room = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    loop {
        // Beyond the bound, connections wait in the kernel's queue.
        let Ok(permit) = room.clone().acquire_owned().await else { return Ok(()) };
        match listener.accept().await {
            Ok((socket, _)) => {
                let (router, clock) = (router.clone(), clock.clone());
                tokio::spawn(async move {
                    if let Some(checked) = read_first_head(socket, &*clock).await {
                        serve(checked, router, true).await;
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin listener can't accept");
                tokio::time::sleep(edge::ACCEPT_REST).await;
            }
        }
    }
}

/// Takes connections of the public listener from the edge. Lives on the control threads.
pub struct PublicCalls {
    router: Router,
    serving: Box<dyn Fn(u16) + Send + Sync>,
    room: Arc<Semaphore>,
}

impl PublicCalls {
    /// `serving` is called when a shard serves streams.
    pub fn new(state: AdminState, serving: Box<dyn Fn(u16) + Send + Sync>) -> Self {
        let room = Arc::new(Semaphore::new(limits::PUBLIC_CALLS_MAX));
        Self { router: public_router(state), serving, room }
    }
}

impl Handover for PublicCalls {
    fn handle_request(&self, socket: OwnedFd, bytes: Bytes) {
        // Without room the connection is closed: its client has sent one request and may repeat it.
        let Ok(permit) = self.room.clone().try_acquire_owned() else { return };
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
}

/// Reads the first head of a connection as the edge does, and answers one that is refused: hyper
/// would do so without a body, and a slow one it would not answer at all. Heads that follow on the
/// same connection are hyper's affair.
async fn read_first_head(mut socket: TcpStream, clock: &dyn Clock) -> Option<Rewind> {
    let mut bytes = BytesMut::with_capacity(1_024);
    let read = async {
        loop {
            let fresh = bytes.len();
            if !matches!(socket.read_buf(&mut bytes).await, Ok(1..)) {
                return Ok(false);
            }
            let look = fresh == 0
                || head::may_be_complete(&bytes, fresh)
                || bytes.len() >= edge::HEAD_BYTES_MAX;
            if look && head::read_head(&bytes)?.is_some() {
                return Ok(true);
            }
        }
    };
    let read = tokio::time::timeout(edge::HEAD_TIME, read).await;
    match read.unwrap_or(Err(HeadError::TooSlow)) {
        Ok(true) => Some(Rewind::new(bytes.freeze(), socket)),
        Ok(false) => None,
        Err(error) => {
            let path = head::path_of(&bytes);
            let body = api::error_body(error.status(), &error.to_string(), path, clock.wall());
            let mut answer = Vec::new();
            head::write_response(&mut answer, error.status(), api::JSON, None, &body);
            let _ = tokio::time::timeout(edge::LINGER_TIME, refuse(socket, &answer)).await;
            None
        }
    }
}

/// Sends an answer, and reads what still comes, so that no reset overtakes it.
async fn refuse(mut socket: TcpStream, answer: &[u8]) {
    if socket.write_all(answer).await.is_ok() && socket.shutdown().await.is_ok() {
        let mut scratch = [0; 4 * 1024];
        while matches!(socket.read(&mut scratch).await, Ok(1..)) {}
    }
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
        .serve_connection(TokioIo::new(io), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended early");
    }
}
