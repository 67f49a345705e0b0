//! Floor 1: bytes that others read, and how they are written and read.

pub mod again;
pub mod api;
pub mod archive;
pub mod control;
pub mod cursor;
pub mod dead_letter;
pub mod frame;
pub mod head;
mod plain;
pub mod record;
