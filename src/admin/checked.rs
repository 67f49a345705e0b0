//! A connection of which every request head is read as the edge reads it, before hyper sees it.
//!
//! hyper takes heads that a proxy in front may understand otherwise, and refuses others without a
//! body. So bytes pass to it a head or a body at a time, as `wire::head` understands them. A head
//! that is refused looks to hyper like the end of the connection; the answer goes out behind those
//! to the requests before it. Behind the last answer what still comes is read and forgotten for a
//! while, so that no reset overtakes it (RFC 9112, section 9.6).

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::limits::edge as limits;
use crate::wire::head::{self, HeadError};

/// The bytes of an answer to a head that is refused.
pub(super) type Refuse = Box<dyn Fn(HeadError, &[u8]) -> Vec<u8> + Send>;

pub(super) struct Checked {
    socket: TcpStream,
    /// What was read and has not passed.
    bytes: BytesMut,
    /// How many of them may pass.
    passing: usize,
    next: Next,
    refuse: Refuse,
    /// What is still to be said to a head that was refused. Nothing passes any more.
    refusal: Option<Bytes>,
    closing: Option<Closing>,
}

/// A connection whose last answer is out.
struct Closing {
    is_shut: bool,
    linger: Pin<Box<Sleep>>,
}

/// What stands behind the bytes that pass.
enum Next {
    /// A head, of which so many bytes were looked at.
    Head(usize),
    /// So much of a body.
    Body(u64),
    /// A body whose end hyper finds. Its connection is not used again (`errors::guard`).
    Rest,
}

impl Checked {
    /// `bytes` were read from the socket already.
    pub fn new(socket: TcpStream, bytes: BytesMut, refuse: Refuse) -> Self {
        Self {
            socket,
            bytes,
            passing: 0,
            next: Next::Head(0),
            refuse,
            refusal: None,
            closing: None,
        }
    }

    /// Decides about the bytes that are here.
    fn check(&mut self) {
        match self.next {
            Next::Head(looked_at) => self.check_head(looked_at),
            Next::Body(length) => {
                self.passing = usize::try_from(length).unwrap_or(usize::MAX).min(self.bytes.len());
                let rest = length - self.passing as u64;
                self.next = if rest == 0 { Next::Head(0) } else { Next::Body(rest) };
            }
            Next::Rest => self.passing = self.bytes.len(),
        }
    }

    fn check_head(&mut self, looked_at: usize) {
        let is_new = looked_at == 0 || head::may_be_complete(&self.bytes, looked_at);
        if self.bytes.is_empty() || !is_new && self.bytes.len() < limits::HEAD_BYTES_MAX {
            self.next = Next::Head(self.bytes.len());
            return;
        }
        match head::read_head(&self.bytes) {
            Ok(None) => self.next = Next::Head(self.bytes.len()),
            Ok(Some(head)) => {
                self.passing = head.bytes;
                self.next = match head.body() {
                    head::Body::Length(0) => Next::Head(0),
                    head::Body::Length(length) => Next::Body(length),
                    head::Body::Chunked => Next::Rest,
                };
            }
            Err(error) => self.refusal = Some((self.refuse)(error, &self.bytes).into()),
        }
    }
}

impl AsyncRead for Checked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.passing > 0 {
                let length = this.passing.min(buffer.remaining());
                buffer.put_slice(&this.bytes[..length]);
                this.bytes.advance(length);
                this.passing -= length;
                return Poll::Ready(Ok(()));
            }
            this.check();
            if this.refusal.is_some() {
                return Poll::Ready(Ok(()));
            }
            if this.passing == 0 {
                let read = pin!(this.socket.read_buf(&mut this.bytes)).poll(context);
                if ready!(read)? == 0 {
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Checked {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let closing = this.closing.get_or_insert_with(|| Closing {
            is_shut: false,
            linger: Box::pin(tokio::time::sleep(limits::LINGER_TIME)),
        });
        if closing.linger.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        while let Some(answer) = this.refusal.as_mut().filter(|answer| !answer.is_empty()) {
            let sent = Pin::new(&mut this.socket).poll_write(context, answer);
            answer.advance(ready!(sent)?);
        }
        if !closing.is_shut {
            ready!(Pin::new(&mut this.socket).poll_shutdown(context))?;
            closing.is_shut = true;
        }
        loop {
            this.bytes.clear();
            let read = pin!(this.socket.read_buf(&mut this.bytes)).poll(context);
            if ready!(read)? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
