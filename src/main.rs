//! The thin binary: everything is in the library, so that tests and benchmarks reach it.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {}
