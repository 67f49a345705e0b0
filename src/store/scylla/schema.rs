//! Every table: what it is for, its key, how it grows. And the statements that make them.
//!
//! Rules: one table a query; partitions are bounded, by a day or an hour where rows come by time;
//! statuses and contents are written by lightweight transactions only, everything else by
//! statements with explicit keys and timestamps, which may be repeated; nothing that is read in
//! order is deleted row by row. A later release only adds: tables, and columns that may be null.
//!
//! `bucket` is the start of a day or an hour, UTC. Names stand in `tests/golden/tables/scylla.cql`.

use super::ScyllaOptions;

/// The layout that this release makes.
pub const LAYOUT: i32 = 7;
/// The oldest layout whose releases can still run on it.
pub const OLDEST: i32 = 1;

/// The table by which nodes agree who makes the others. It is made first.
pub const META: &str = "corecast_schema";

/// What takes a keyspace from one layout to the next.
pub struct Step {
    pub layout: i32,
    pub tables: &'static [Table],
    /// To tables of earlier steps.
    pub columns: &'static [Column],
}

pub struct Table {
    pub name: &'static str,
    /// Columns and key.
    pub body: &'static str,
    /// Properties, joined by AND; may be empty.
    pub with: &'static str,
}

/// A column that is added to a table: null in the rows of releases that do not know it.
pub struct Column {
    pub table: &'static str,
    pub name: &'static str,
    pub kind: &'static str,
}

/// In order; each only adds.
pub const STEPS: &[Step] = &[
    Step { layout: 1, tables: BROADCASTS, columns: &[] },
    Step { layout: 2, tables: INBOX, columns: &[] },
    Step { layout: 3, tables: PARKING, columns: &[] },
    Step { layout: 4, tables: DEAD_LETTERS, columns: &[] },
    Step { layout: 5, tables: HOLES, columns: &[] },
    Step { layout: 6, tables: ENDINGS, columns: ENDING_COLUMNS },
    Step { layout: 7, tables: AUDIT, columns: &[] },
];

/// Broadcasts, and what is still to be published.
const BROADCASTS: &[Table] = &[
    // The content of a broadcast; never changes. `claim` is drawn by whoever claims the id; none is
    // where it was created elsewhere.
    // Key: the broadcast. Grows by one row a broadcast, of at most about 0.7 MB: up to 1,000
    // targets stand in the row, more in `audience`.
    Table {
        name: "broadcast",
        body: "id bigint PRIMARY KEY, claim uuid, created_at timestamp, correlation_id text, \
               sender_id text, sender_name text, content text, target_type text, \
               target_ids frozen<list<text>>, target_count int, target_chunks int, \
               priority text, category text, scheduled_at timestamp, expires_at timestamp, \
               fire_and_forget boolean",
        with: "",
    },
    // Targets of a large SELECTED audience, 1,000 a row.
    // Key: broadcast and number of the chunk, so that the partitions of one audience are
    // spread. Grows by at most 1,000 rows a broadcast, each of at most 256 KB.
    Table {
        name: "audience",
        body: "id bigint, chunk int, target_ids frozen<list<text>>, PRIMARY KEY ((id, chunk))",
        with: "",
    },
    // Where a broadcast stands; without a row it does not exist.
    // Key: the broadcast. Grows by one small row a broadcast. Lightweight transactions only.
    Table {
        name: "broadcast_status",
        body: "id bigint PRIMARY KEY, claim uuid, status text, changed_at timestamp",
        with: "",
    },
    // The list of all. Key: the day of creation. A partition grows by a row of some 50 bytes a
    // broadcast of that day: 45 MB at ten a second.
    Table {
        name: "broadcast_list",
        body: "bucket timestamp, created_at timestamp, id bigint, \
               PRIMARY KEY ((bucket), created_at, id)",
        with: "CLUSTERING ORDER BY (created_at DESC, id DESC)",
    },
    // What may be active; the status row says whether it is. Key: the day on which it expires,
    // so that what has ended is left behind as whole partitions. Read by merging the days.
    Table {
        name: "active_list",
        body: "bucket timestamp, created_at timestamp, id bigint, \
               PRIMARY KEY ((bucket), created_at, id)",
        with: "CLUSTERING ORDER BY (created_at DESC, id DESC)",
    },
    // What may be scheduled; the status row says whether it is. Key: the day for which it is
    // scheduled.
    Table {
        name: "scheduled_list",
        body: "bucket timestamp, scheduled_at timestamp, id bigint, \
               PRIMARY KEY ((bucket), scheduled_at, id)",
        with: "CLUSTERING ORDER BY (scheduled_at ASC, id ASC)",
    },
    // What is still to be published. Rows are marked, not deleted, and read from a stored
    // position on: a queue of deleted rows would be read through each time. Without `v` a row
    // is only a mark. Key: the hour of creation. A partition grows by 40 bytes a broadcast of
    // that hour; it is dropped as a whole after 30 days, in 30 windows.
    Table {
        name: "outbox",
        body: "bucket timestamp, created_at timestamp, id bigint, v int, done boolean, \
               PRIMARY KEY ((bucket), created_at, id)",
        with: "CLUSTERING ORDER BY (created_at ASC, id ASC) AND \
               default_time_to_live = 2592000 AND \
               compaction = {'class': 'TimeWindowCompactionStrategy', \
               'compaction_window_unit': 'DAYS', 'compaction_window_size': '1'}",
    },
    // Which buckets of a list or of the outbox hold rows, so that nobody looks into empty ones.
    // Key: the list. Grows by a row a day (365 a year), the outbox by one an hour (8,760).
    Table {
        name: "bucket",
        body: "list text, bucket timestamp, v int, PRIMARY KEY ((list), bucket)",
        with: "CLUSTERING ORDER BY (bucket ASC)",
    },
    // Where readers of queues go on; the write timestamp is the position, so that they merge
    // as a maximum. Key: the queue. Does not grow.
    Table { name: "position", body: "name text PRIMARY KEY, at timestamp", with: "" },
];

/// What is kept for users who are not here. Cells merge by their write timestamps, which are ranks
/// of what they say (`ranks.rs`); nothing is deleted, all expires. Ranks are no times, so none of
/// these tables is compacted by windows of time.
const INBOX: &[Table] = &[
    // A message of a user and how it stands. Without `v` a row is none yet, or no longer: the other
    // cells outlive it by a day. Key: the user. A partition grows by some 150 bytes a message of
    // that user, until the message is past its time: 0.5 MB at a hundred a day for a month.
    Table {
        name: "inbox",
        body: "user_id text, id bigint, v int, place frozen<tuple<blob, tinyint, int, bigint, \
               timestamp>>, progress frozen<tuple<bigint, tinyint>>, delivered_at timestamp, \
               PRIMARY KEY ((user_id), id)",
        with: "CLUSTERING ORDER BY (id ASC)",
    },
    // A record of the group topic that created a broadcast. Key: 16,384 offsets of a partition of
    // one log. A partition grows by at most as many rows of 60 bytes: 1 MB.
    Table {
        name: "group_message",
        body: "log blob, partition_index int, bucket bigint, log_offset bigint, id bigint, \
               appended_at timestamp, keep_until timestamp, \
               PRIMARY KEY ((log, partition_index, bucket), log_offset)",
        with: "CLUSTERING ORDER BY (log_offset ASC)",
    },
    // Which buckets of `group_message` hold rows, so that nobody looks into empty ones. Key: the
    // partition of one log. Grows by a row of 40 bytes every 16,384 records; they expire with the
    // last row of their bucket.
    Table {
        name: "group_bucket",
        body: "log blob, partition_index int, bucket bigint, v int, \
               PRIMARY KEY ((log, partition_index), bucket)",
        with: "CLUSTERING ORDER BY (bucket ASC)",
    },
    // Up to where a user has been served. Key: the user and the log. A partition has a row for each
    // partition that the user's streams have met, about a dozen; forgotten after 400 days.
    Table {
        name: "stored_cursor",
        body: "user_id text, log blob, topic tinyint, partition_index int, next bigint, \
               PRIMARY KEY ((user_id, log), topic, partition_index)",
        with: "CLUSTERING ORDER BY (topic ASC, partition_index ASC) AND \
               default_time_to_live = 34560000",
    },
];

/// Records that wait until they are published again.
const PARKING: &[Table] = &[
    // A record that could not be served where it stood. Rows are marked, not deleted, as in the
    // outbox; without `tries` a row is only a mark. Key: one of 16 shares of the events, and the
    // hour at which it is due. A partition grows by a record (of at most 1 MB, usually 1 KB) for
    // each that is parked in that hour: an older producer with another partitioner, at 100 a
    // second, makes 22,500 rows and 23 MB an hour.
    Table {
        name: "parked",
        body: "share int, bucket timestamp, due_at timestamp, event_id uuid, attempt bigint, \
               tries int, topic tinyint, partition_index int, \
               log_offset bigint, appended_at timestamp, timed_by_log boolean, \
               key blob, value blob, \
               headers frozen<list<frozen<tuple<blob, blob>>>>, done boolean, \
               PRIMARY KEY ((share, bucket), due_at, event_id, attempt)",
        with: "CLUSTERING ORDER BY (due_at ASC, event_id ASC, attempt ASC) AND \
               default_time_to_live = 2592000 AND \
               compaction = {'class': 'TimeWindowCompactionStrategy', \
               'compaction_window_unit': 'DAYS', 'compaction_window_size': '1'}",
    },
    // Events without an inbox row that were published again and stand where they are served. Key:
    // the event. Grows by a row of 30 bytes for each; forgotten after 30 days.
    Table {
        name: "served_event",
        body: "event_id uuid PRIMARY KEY, v int",
        with: "default_time_to_live = 2592000",
    },
];

/// Records that could not be processed, as they stand in the dead-letter topics. Nothing is
/// deleted: what was purged is marked, and all is forgotten after 400 days.
const DEAD_LETTERS: &[Table] = &[
    // A dead letter: `record` is JSON, or the first 256 KiB of it. Key: a digest of where the
    // original stood. Grows by one row a dead letter.
    Table {
        name: "dead_letter",
        body: "original blob PRIMARY KEY, dlt_topic text, dlt_partition int, dlt_offset bigint, \
               failed_at timestamp, record blob, parts int, purged_at timestamp",
        with: "default_time_to_live = 34560000",
    },
    // The rest of a large one, 256 KiB a row. Key: the original, which dead letter of it, and the
    // number of the part, from 1 on, so that the parts of one are spread.
    Table {
        name: "dead_letter_part",
        body: "original blob, dlt_offset bigint, part int, bytes blob, \
               PRIMARY KEY ((original, dlt_offset, part))",
        with: "default_time_to_live = 34560000",
    },
    // Which dead letter an id means. Key: the place in the dead-letter topic. Grows by one small
    // row a record there.
    Table {
        name: "dead_letter_id",
        body: "dlt_topic text, dlt_partition int, dlt_offset bigint, original blob, \
               PRIMARY KEY ((dlt_topic, dlt_partition, dlt_offset))",
        with: "default_time_to_live = 34560000",
    },
    // The list of all. Without `v` a row is only a mark. Key: the hour of its append. A partition
    // grows by a row of some 60 bytes a dead letter of that hour: 200 MB at a thousand a second.
    Table {
        name: "dead_letter_list",
        body: "bucket timestamp, failed_at timestamp, original blob, v int, purged boolean, \
               PRIMARY KEY ((bucket), failed_at, original)",
        with: "CLUSTERING ORDER BY (failed_at DESC, original DESC) AND \
               default_time_to_live = 34560000",
    },
];

/// What the log lost.
const HOLES: &[Table] = &[
    // Offsets that the log lost before their owner had kept what stood there; the write timestamp
    // is the end, so that they merge as a maximum. Key: the log. Grows by a row of 50 bytes
    // whenever an owner is so far behind that the log's retention overtakes it; forgotten after 400
    // days, as cursors are.
    Table {
        name: "hole",
        body: "log blob, topic tinyint, partition_index int, log_offset bigint, next bigint, \
               noted_at timestamp, PRIMARY KEY ((log), topic, partition_index, log_offset)",
        with: "CLUSTERING ORDER BY (topic ASC, partition_index ASC, log_offset ASC) AND \
               default_time_to_live = 34560000",
    },
];

/// How broadcasts end.
const ENDINGS: &[Table] = &[
    // A broadcast that is being ended, or was. Rows are marked, not deleted, as in the outbox;
    // without `how` a row is only a mark. Key: the hour of its writing. A partition grows by 50
    // bytes a broadcast that ends in that hour. Dropped as a whole after 30 days: a node that
    // starts reads those of the log's retention and a day.
    Table {
        name: "ending",
        body: "bucket timestamp, at timestamp, id bigint, how text, settled boolean, \
               PRIMARY KEY ((bucket), at, id)",
        with: "CLUSTERING ORDER BY (at ASC, id ASC) AND \
               default_time_to_live = 2592000 AND \
               compaction = {'class': 'TimeWindowCompactionStrategy', \
               'compaction_window_unit': 'DAYS', 'compaction_window_size': '1'}",
    },
    // What is to expire. Rows are marked, not deleted; without `v` a row is only a mark. They live
    // until 30 days after their time, which may be years ahead, so windows of time hold nothing
    // together. Key: one of 16 shares of the broadcasts, and the hour at which it is due. A
    // partition grows by 40 bytes a broadcast of that share that expires in that hour.
    Table {
        name: "due",
        body: "share int, bucket timestamp, at timestamp, id bigint, v int, done boolean, \
               PRIMARY KEY ((share, bucket), at, id)",
        with: "CLUSTERING ORDER BY (at ASC, id ASC)",
    },
];

const ENDING_COLUMNS: &[Column] = &[
    // Drawn for each change of a status, so that a change whose answer is lost is known again. Not
    // `claim`: by that who created the row knows it.
    Column { table: "broadcast_status", name: "change", kind: "uuid" },
    // Where the record stands that takes a message away from this user.
    Column {
        table: "inbox",
        name: "removed",
        kind: "frozen<tuple<blob, tinyint, int, bigint, timestamp>>",
    },
    // What the record did; null: it created the broadcast.
    Column { table: "group_message", name: "what", kind: "text" },
];

/// What was done with dead letters by hand.
const AUDIT: &[Table] = &[
    // A line a call. Without `action` a row is none. Key: the day of its beginning. A partition
    // grows by some 150 bytes a call of that day; forgotten after 400 days, as dead letters are.
    Table {
        name: "dead_letter_audit",
        body: "bucket timestamp, at timestamp, line uuid, action text, letter text, node text, \
               succeeded bigint, failed bigint, PRIMARY KEY ((bucket), at, line)",
        with: "CLUSTERING ORDER BY (at DESC, line DESC) AND default_time_to_live = 34560000",
    },
];

/// Key: `schema` for what was made, `lock` for who is making it. Two rows.
const META_TABLE: Table = Table {
    name: META,
    body: "part text PRIMARY KEY, product text, layout int, oldest int, holder uuid, \
           made_by text, made_at timestamp",
    with: "",
};

/// ScyllaDB alone knows these; Cassandra refuses them, so no test runs them. Tablets are off
/// because the releases of ScyllaDB that are in use refuse lightweight transactions on them; with
/// one copy there is nothing to repair, and the mode is refused.
const SCYLLA_KEYSPACE: &str = " AND tablets = {'enabled': false}";
const SCYLLA_TABLE: &str = "tombstone_gc = {'mode': 'repair'}";

/// A read that a replica does not answer goes to another one so soon. By default a database waits
/// as long as its slowest reads took, or seconds if it has just started and knows of none: longer
/// than a statement has (`limits::store::REQUEST_TIME`), while one frozen node is to harm nobody.
const TABLE: &str = "speculative_retry = '250ms'";

pub fn create_keyspace(options: &ScyllaOptions) -> String {
    let ScyllaOptions { keyspace, replication, datacenter, .. } = options;
    let datacenter = datacenter.as_deref().unwrap_or("replication_factor");
    // A name of a datacenter is the operator's text.
    let datacenter = datacenter.replace('\'', "''");
    let suffix = if options.scylla_ddl { SCYLLA_KEYSPACE } else { "" };
    format!(
        "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {{'class': \
         'NetworkTopologyStrategy', '{datacenter}': '{replication}'}}{suffix}"
    )
}

pub fn create_meta(options: &ScyllaOptions) -> String {
    create(&META_TABLE, options)
}

pub fn create(table: &Table, options: &ScyllaOptions) -> String {
    let Table { name, body, with } = table;
    let is_repaired = options.scylla_ddl && options.replication > 1;
    let suffix = if is_repaired { SCYLLA_TABLE } else { "" };
    let with = [*with, TABLE, suffix].into_iter().filter(|part| !part.is_empty());
    let with = with.collect::<Vec<_>>().join(" AND ");
    format!("CREATE TABLE IF NOT EXISTS {}.{name} ({body}) WITH {with}", options.keyspace)
}

/// To be run once: not every database knows `IF NOT EXISTS` here.
pub fn add(column: &Column, options: &ScyllaOptions) -> String {
    let Column { table, name, kind } = column;
    format!("ALTER TABLE {}.{table} ADD {name} {kind}", options.keyspace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{dead_letters, inbox, store};

    fn statements(options: &ScyllaOptions) -> Vec<String> {
        let mut all = vec![create_keyspace(options), create_meta(options)];
        for step in STEPS {
            all.extend(step.tables.iter().map(|table| create(table, options)));
            all.extend(step.columns.iter().map(|column| add(column, options)));
        }
        all
    }

    /// One statement a line: for Cassandra and any CQL database, then for ScyllaDB.
    #[test]
    fn golden_tables() {
        let golden = include_str!("../../../tests/golden/tables/scylla.cql");
        let plain = ScyllaOptions::new(["127.0.0.1:9042"]);
        let scylla = ScyllaOptions {
            datacenter: Some("east".to_owned()),
            replication: 3,
            scylla_ddl: true,
            ..plain.clone()
        };
        let mut made = String::from("-- store.scylla_ddl = false\n");
        made.extend(statements(&plain).into_iter().map(|statement| statement + ";\n"));
        made.push_str("-- store.scylla_ddl = true, store.datacenter = \"east\", ");
        made.push_str("store.replication = 3\n");
        made.extend(statements(&scylla).into_iter().map(|statement| statement + ";\n"));
        for (golden, made) in golden.lines().zip(made.lines()) {
            assert_eq!(golden, made);
        }
        assert_eq!(golden.lines().count(), made.lines().count());
    }

    #[test]
    fn steps_rise_to_the_layout() {
        let layouts: Vec<i32> = STEPS.iter().map(|step| step.layout).collect();
        assert!(layouts.iter().zip(1..).all(|(layout, number)| *layout == number));
        assert_eq!(layouts.last(), Some(&LAYOUT));
        const { assert!(OLDEST <= LAYOUT) };
        let cursors = INBOX.iter().find(|table| table.name == "stored_cursor").expect("a table");
        let keep = format!("default_time_to_live = {}", inbox::CURSOR_KEEP.as_secs());
        assert!(cursors.with.contains(&keep));
        let keep = format!("default_time_to_live = {}", dead_letters::KEEP.as_secs());
        assert!(DEAD_LETTERS.iter().chain(AUDIT).all(|table| table.with.contains(&keep)));
        let keep = format!("default_time_to_live = {}", store::ENDINGS_KEEP.as_secs());
        assert!(ENDINGS.iter().any(|table| table.with.contains(&keep)));
    }
}
