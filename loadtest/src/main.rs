//! Load tests of an installation.

fn main() {}
