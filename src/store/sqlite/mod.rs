//! The store on one disk: SQLite, one writer.

mod effects;
mod maintenance;
mod rows;
