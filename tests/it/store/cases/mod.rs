//! What every store must do, one case a sentence.

pub mod accept;
pub mod dead;
pub mod deliver;
pub mod fence;
pub mod register;
