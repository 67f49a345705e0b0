//! What every `Audit` must do.

use corecast::base::EpochMillis;
use corecast::ports::{Audit, AuditLine, AuditPlace, Audited, AuditedCounts};
use uuid::Uuid;

use super::Case;
use super::store::{Stores, at_once, block_on, now};

/// Every promise of the trait.
pub const CASES: &[Case] = &[
    ("lines come back as they were", lines_come_back_as_they_were),
    ("an outcome stays", an_outcome_stays),
    ("lines come newest first, page by page", lines_come_newest_first),
    ("many write lines at a time", many_write_lines_at_a_time),
];

const DAY: u64 = 24 * 3_600_000;

fn line(at: u64, number: u64) -> AuditLine {
    let what = Audited::ALL[number as usize % Audited::ALL.len()];
    let id = Uuid::new_v4();
    let node = format!("node {number}");
    AuditLine { at: EpochMillis(at), id, what, letter: None, node, counts: None }
}

async fn all(audit: &dyn Audit) -> Vec<AuditLine> {
    audit.audit(None, 10_000).await.unwrap()
}

fn lines_come_back_as_they_were(stores: &dyn Stores) {
    let audit = stores.fresh_audit();
    block_on(async {
        assert_eq!(all(&*audit).await, []);
        let at = now().0;
        let mut lines: Vec<AuditLine> = (0..4).map(|number| line(at - number, number)).collect();
        lines[0].letter = Some("a-topic-dlt-0-7".parse().unwrap());
        lines[1].counts = Some(AuditedCounts { succeeded: 1 << 40, failed: 0 });
        lines[2].node = "n\u{e4}me \"quoted\"".to_owned();
        for line in &lines {
            audit.write_audit(line).await.unwrap();
        }
        assert_eq!(all(&*audit).await, lines);
    });
}

fn an_outcome_stays(stores: &dyn Stores) {
    let audit = stores.fresh_audit();
    block_on(async {
        let begun = line(now().0 - 5, 0);
        let counts = Some(AuditedCounts { succeeded: 2, failed: 3 });
        let ended = AuditLine { counts, ..begun.clone() };
        for write in [&begun, &begun, &ended, &ended, &begun] {
            audit.write_audit(write).await.unwrap();
        }
        assert_eq!(all(&*audit).await, [ended]);
    });
}

fn lines_come_newest_first(stores: &dyn Stores) {
    let audit = stores.fresh_audit();
    let end = now().0;
    block_on(async {
        // Some at one moment, others over days.
        let times = [0, 0, 1, DAY, DAY, DAY + 1, 3 * DAY, 120 * DAY];
        let mut lines: Vec<AuditLine> =
            (0..).zip(times).map(|(number, time)| line(end - time, number)).collect();
        for line in lines.iter().rev() {
            audit.write_audit(line).await.unwrap();
        }
        lines.sort_by_key(|line| std::cmp::Reverse(line.place()));
        assert_eq!(all(&*audit).await, lines);
        for limit in [1, 2, 3, 5] {
            let mut found: Vec<AuditLine> = Vec::new();
            loop {
                let after: Option<AuditPlace> = found.last().map(AuditLine::place);
                let page = audit.audit(after, limit).await.unwrap();
                assert!(page.len() <= limit);
                if page.is_empty() {
                    break;
                }
                found.extend(page);
            }
            assert_eq!(found, lines, "pages of {limit}");
        }
        assert_eq!(audit.audit(None, 0).await.unwrap(), []);
    });
}

fn many_write_lines_at_a_time(stores: &dyn Stores) {
    const WRITERS: u64 = 40;
    let audit = stores.fresh_audit();
    let at = now().0;
    block_on(async {
        let mut lines: Vec<AuditLine> = (0..WRITERS).map(|number| line(at, number)).collect();
        at_once(&lines, |line| {
            let audit = audit.clone();
            async move { audit.write_audit(&line).await.unwrap() }
        })
        .await;
        lines.sort_by_key(|line| std::cmp::Reverse(line.place()));
        assert_eq!(all(&*audit).await, lines);
    });
}
