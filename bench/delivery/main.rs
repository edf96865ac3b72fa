//! `make bench`: how fast a delivery pod delivers, against a yardstick measured
//! in the same run: the generator sending straight to the receiver.
//!
//! The pod is the release binary as a process of its own; generator, receiver
//! and the double of the API server live in this one. Arguments pick figures by
//! name (none: all). `POSTHORN_BENCH_SECONDS` (60), `POSTHORN_BENCH_ROUNDS` (5)
//! and `POSTHORN_BENCH_WARMUP` (1000000 events) make a shorter run; the report
//! says so. `POSTHORN_BENCH_FOLDER` is where the store lives.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "a benchmark, not a part"
)]

mod backlog;
mod disk;
mod isolation;
mod report;
mod setup;
mod throughput;

#[path = "../../tests/rig/mod.rs"]
mod rig;

use report::Report;
use setup::Settings;

fn main() {
    let settings = Settings::from_environment();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut report = Report::new(&settings);
    // Cargo hands `--bench` over.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|one| one == name);
    runtime.block_on(async {
        let raw = throughput::raw(&settings, &mut report).await;
        if is_wanted("single") {
            throughput::single(&settings, &mut report, raw).await;
        }
        if is_wanted("many") {
            throughput::many(&settings, &mut report, raw).await;
        }
        if is_wanted("batch") {
            throughput::batch(&settings, &mut report, raw).await;
        }
        if is_wanted("latency") {
            throughput::latency(&settings, &mut report).await;
        }
        if is_wanted("isolation") {
            isolation::dead_and_slow(&settings, &mut report).await;
        }
        if is_wanted("fanout") {
            isolation::fan_out(&settings, &mut report).await;
        }
        if is_wanted("retention") {
            isolation::retention(&settings, &mut report).await;
        }
        if is_wanted("memory") {
            backlog::memory(&settings, &mut report).await;
        }
        if is_wanted("start") {
            backlog::start(&settings, &mut report).await;
        }
        if is_wanted("writes") {
            backlog::dead_endpoint(&settings, &mut report).await;
            backlog::many_active(&settings, &mut report).await;
        }
    });
    report.print();
}
