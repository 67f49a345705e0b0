//! The promises on real parts: nodes on three brokers and three database nodes, of which any is
//! killed, frozen or away while users come and go. One file a promise; `docs/promises.md` says what
//! each one means and where it ends. Those that need no cluster, or one of their own, stand beside
//! this folder.
//!
//! Cassandra stands in for ScyllaDB.

mod ledger;
mod p1_nothing_is_lost;
mod p3_nobody_elses;
mod p4_nothing_after_cancel;
mod p7_an_outage_is_waited_out;
#[path = "../real/mod.rs"]
mod real;
mod run;
mod traffic;
mod users;
mod world;
