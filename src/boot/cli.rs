//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::ops::config::Inputs;

/// Takes broadcast events from a log and holds the SSE streams of very large audiences.
#[derive(Debug, Parser)]
#[command(name = "corecast", version, about, after_help = EXAMPLES)]
pub struct CommandLine {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub flags: Flags,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node. This is what is done without a command.
    Serve,
    /// Check a configuration: print it with all defaults, or everything that is wrong with it.
    CheckConfig,
}

#[derive(Debug, Args)]
pub struct Flags {
    /// Configuration file (TOML); config/corecast.toml documents every key.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key; beats file and environment. May be repeated.
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  corecast                                        one node, embedded log and store
  corecast --set public.listen=127.0.0.1:9000     another port
  corecast --config corecast.toml check-config    is this file right?
  CORECAST_NODE__DATA_DIR=/var/lib/corecast corecast

Exit status: 0 after a drain (SIGTERM), 2 for a wrong configuration, 1 for anything else.";

impl CommandLine {
    /// What the configuration is read from.
    pub fn inputs(&self) -> Inputs {
        // A name that is no UTF-8 can't be ours; a value that is none is refused as any wrong one.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
            })
            .collect();
        Inputs { file: self.flags.config.clone(), environment, sets: self.flags.set.clone() }
    }
}
