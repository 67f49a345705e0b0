//! The thin binary: everything is in the library, so that tests and benchmarks reach it.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    corecast::boot::main()
}
