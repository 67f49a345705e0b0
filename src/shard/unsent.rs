//! How much of what was written to a socket its peer has not acknowledged.
#![allow(unsafe_code)] // One block: a request of ioctl that the library has no function for.

use std::ffi::c_int;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, ioctl};

/// `SIOCOUTQ` of Linux, which is `TIOCOUTQ`: tcp(7).
const SIOCOUTQ: Opcode = 0x5411;

/// Bytes; all of them if the kernel does not say.
pub fn unsent(socket: impl AsFd) -> u64 {
    // SAFETY: this request writes one int to where the getter points it, on every descriptor, or
    // fails.
    let bytes = unsafe { ioctl(socket, Getter::<SIOCOUTQ, c_int>::new()) };
    bytes.ok().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_the_peer_has_is_not_unsent() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut own = TcpStream::connect(listener.local_addr().expect("bound")).expect("a peer");
        let (mut peer, _) = listener.accept().expect("a connection");
        assert_eq!(unsent(&own), 0);
        own.write_all(b"hello").expect("there is room");
        peer.read_exact(&mut [0; 5]).expect("five bytes");
        while unsent(&own) > 0 {
            std::thread::yield_now();
        }
        // A peer that reads nothing acknowledges until its buffer is full.
        own.set_nonblocking(true).expect("a socket");
        while own.write(&[0; 65_536]).is_ok() {}
        let waits = unsent(&own);
        assert!(waits > 0 && waits < 1 << 30, "{waits} bytes");
        assert_eq!(unsent(std::fs::File::open("Cargo.toml").expect("a file")), u64::MAX);
    }
}
