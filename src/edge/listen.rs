//! Listeners, with the options that accepted sockets inherit.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::limits::{edge as limits, shard};

/// Binds one listener for each of `count` shards to the same address; port 0 is drawn once.
///
/// SO_REUSEPORT would let a second node share the port unseen, so the address is first bound
/// without it: an address in use is an error.
pub fn listen(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let probe = TcpListener::bind(address)?;
    let bound = probe.local_addr()?;
    drop(probe);
    (0..count).map(|_| listen_shared(bound)).collect()
}

fn listen_shared(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    // A peer that acknowledges nothing for so long is dead, whether or not we have more to say.
    socket.set_tcp_user_timeout(Some(shard::WRITE_PROGRESS))?;
    socket.set_tcp_notsent_lowat(limits::UNSENT_BYTES)?;
    socket.bind(&address.into())?;
    socket.listen(limits::BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn shards_share_an_address_and_nobody_else_does() {
        let any = "127.0.0.1:0".parse().expect("an address");
        let listeners = listen(any, 2).expect("a free port");
        let bound = listeners[0].local_addr().expect("bound");
        assert_eq!(listeners[1].local_addr().expect("bound"), bound);
        let connected = TcpStream::connect(bound).expect("it listens");
        let accepted = std::iter::repeat_with(|| &listeners)
            .find_map(|listeners| listeners.iter().find_map(|listener| listener.accept().ok()));
        let (accepted, _) = accepted.expect("endless");
        let unsent = socket2::SockRef::from(&accepted).tcp_notsent_lowat();
        assert_eq!(unsent.expect("an option"), limits::UNSENT_BYTES, "it inherits");
        drop(connected);
        let error = listen(bound, 1).expect_err("taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
