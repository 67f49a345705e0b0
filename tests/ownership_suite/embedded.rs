//! The embedded ownership.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use corecast::base::{Partition, Topic};
use corecast::ports::{Commit, Mark, Ownership, SystemClock};
use corecast::store::embedded::{Embedded, EmbeddedOptions};
use harness::process::Process;

use crate::nodes::Node;
use crate::{LONG, PARTITIONS, Site, run, suite};

struct Database {
    embedded: Embedded,
    _folder: tempfile::TempDir,
}

impl Site for Database {
    fn ownership(&self, takes_part: bool) -> Arc<dyn Ownership> {
        self.embedded.ownership(takes_part)
    }
}

fn open(folder: &Path) -> Embedded {
    let options = EmbeddedOptions { data_dir: folder.to_owned(), partitions: PARTITIONS };
    Embedded::open(&options, Arc::new(SystemClock)).expect("opens")
}

#[test]
fn the_embedded_ownership_does_what_one_must() {
    run(suite::check(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Database { embedded: open(folder.path()), _folder: folder }
    }));
}

const FOLDER: &str = "CORECAST_TEST_CHECKPOINTS";
const PARTITION: Partition = Partition { topic: Topic::Group, index: 2 };

/// The process that the next test kills: commits one after the other, and says each one that is
/// done. Nothing in a run of its own.
#[test]
fn a_process_that_commits() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    run(async {
        let node = Node::start(open(Path::new(&folder)).ownership(true));
        let tenure = node.owns_all().await[&PARTITION];
        for next in 1.. {
            let mark = Mark { partition: PARTITION, tenure, next };
            assert_eq!(node.commit(&[mark]).await, [Commit::Done]);
            println!("\ncommitted {next}");
            std::io::stdout().flush().expect("somebody reads");
        }
    });
}

#[test]
fn a_checkpoint_outlives_kill_9() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut before = 0;
    for _ in 0..3 {
        let mut command = Command::new(std::env::current_exe().expect("a test is a program"));
        command.args(["--exact", "embedded::a_process_that_commits", "--nocapture"]);
        command.env(FOLDER, folder.path());
        let mut process = Process::start("committing", command).expect("a test can be run");
        let number = |line: &str| line.strip_prefix("committed ")?.parse::<u64>().ok();
        process.wait_for_line(LONG, |line| number(line).filter(|next| *next >= 20));
        process.kill();
        let said = process.text().lines().filter_map(number).max().expect("some");
        run(async {
            let ownership = open(folder.path()).ownership(false);
            let found = ownership.checkpoints().await.expect("checkpoints");
            let next = found[&PARTITION];
            assert_eq!(found, BTreeMap::from([(PARTITION, next)]));
            // One more may have been written than was said.
            assert!((said..=said + 1).contains(&next), "{next}, and {said} was said");
            assert!(next >= 20);
            before += next;
        });
    }
    assert!(before >= 60);
}
