//! The bare send loop.

fn main() {}
