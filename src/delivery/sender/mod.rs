//! wip
pub mod fingerprint_key;
pub mod gate;
mod recent;
pub mod run_dir;
pub mod secret_cache;
pub mod secret_state;
