//! The baseline as a program: `bareloop [CORE]`.

fn main() -> std::io::Result<()> {
    let core = std::env::args().nth(1).and_then(|core| core.parse().ok());
    bareloop::run(core)
}
