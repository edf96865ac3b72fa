//! The role `controller`: decides, writes every status, and makes the pods that
//! deliver. It never dials an endpoint and never writes `spec`.

pub mod internal;
pub mod names;
pub mod pool;
