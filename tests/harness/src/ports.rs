//! Ports that nobody uses now.

use std::net::TcpListener;

/// `count` ports that are free on this address. They are all held until all are found, so they
/// differ; between this call and their use another process may take one.
pub fn free(address: &str, count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind((address, 0)).expect("a free port")).collect();
    held.iter().map(|listener| listener.local_addr().expect("bound").port()).collect()
}
