//! The program as users build it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Where the gateway lies, built as the README says, once a process.
///
/// The program that cargo builds for a benchmark is another one: it has the features that only
/// dependencies of tests ask for, so its code lies elsewhere, which alone has cost 8 % of a
/// delivery.
pub fn program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut command = Command::new(cargo);
        command.args(["build", "--release", "--bin", "corecast", "--message-format"]);
        command.arg("json-render-diagnostics").current_dir(root).stderr(Stdio::inherit());
        // What cargo tells a benchmark of itself, build scripts would take for news, and half of
        // the dependencies would be built again each time.
        let told = std::env::vars_os().map(|(name, _)| name);
        for name in told.filter(|name| is_of_cargo(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        let output = command.output().expect("cargo can be run");
        assert!(output.status.success(), "the program as it is shipped can't be built");
        executable(&output.stdout).expect("cargo says where it has put the program")
    })
}

/// Whether cargo sets this variable for what it runs.
fn is_of_cargo(name: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
        .iter()
        .any(|start| name.starts_with(start))
}

/// Of cargo's messages, a line each, the one that names the program.
fn executable(messages: &[u8]) -> Option<String> {
    let messages = messages.split(|&byte| byte == b'\n');
    let of = |message| serde_json::from_slice::<serde_json::Value>(message).ok();
    messages.filter_map(of).find_map(|message| Some(message["executable"].as_str()?.to_owned()))
}
