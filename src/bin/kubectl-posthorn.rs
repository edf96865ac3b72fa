//! `kubectl posthorn`: look at Webhooks and have them verified.

fn main() {}
