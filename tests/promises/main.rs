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
mod p5_a_bad_record_stops_nothing;
mod p6_a_slow_reader_costs_only_itself;
mod p7_an_outage_is_waited_out;
mod p8_restart_without_loss_or_storm;
#[path = "../real/mod.rs"]
mod real;
mod run;
#[path = "../store/mod.rs"]
mod store;
mod traffic;
mod users;
mod world;
