//! The embedded log.

use std::sync::Arc;

use corecast::ports::SystemClock;
use corecast::store::embedded::{Embedded, EmbeddedOptions};

use crate::{PARTITIONS, run, suite};

#[test]
fn the_embedded_log_does_what_a_log_must() {
    run(suite::check(async || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options =
            EmbeddedOptions { data_dir: folder.path().to_owned(), partitions: PARTITIONS };
        let embedded = Embedded::open(&options, Arc::new(SystemClock)).expect("opens");
        (embedded.log(), folder)
    }));
}
