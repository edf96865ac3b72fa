//! What must hold after every fault: acknowledged ⊆ stored and routed.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use posthorn::{
    event::Pos,
    store::{
        History, Partition, StoredEvent,
        sqlite::{DATABASE_FILE, verify},
    },
};

use super::writer::{self, Plan, Said, Writer};

/// How long routing may go on after a start.
const SETTLE_MAX: Duration = Duration::from_secs(60);
/// Positions asked for at once.
const ASKED_MAX: usize = 256;

/// What was counted over all cycles.
#[derive(Debug, Default)]
pub struct Report {
    pub cycles: u32,
    pub acknowledged: usize,
    /// Acknowledged and not there.
    pub lost: usize,
    /// Times that a crash left a fan-out under way.
    pub unrouted: u32,
    /// Longest time to open the store again, and to route what was left.
    pub opened_within: Duration,
}

pub fn acknowledged(said: &[Said]) -> Vec<Pos> {
    said.iter().filter_map(|said| if let Said::Acknowledged(pos) = said { Some(*pos) } else { None }).collect()
}

/// Opens the store after a fault and says which of these are not there, or not
/// routed to every hook. Everything that is there adds up.
pub async fn missing(folder: &Path, positions: &[Pos], plan: Plan, report: &mut Report) -> BTreeSet<Pos> {
    let before = verify(&folder.join(DATABASE_FILE)).unwrap();
    assert_eq!(before.problems, [], "what a crash leaves is whole");
    report.unrouted += u32::from(before.scans > 0);
    let begun = Instant::now();
    let (store, _news) = writer::open(folder, plan.size_bytes).unwrap();
    report.opened_within = report.opened_within.max(begun.elapsed());
    let hooks = plan.hooks as u64;
    let all_routed = || async {
        let totals = store.totals().await.unwrap();
        totals.routed == totals.events * hooks
    };
    // One Delivery for each hook and event at most, so that many are all of them.
    while !all_routed().await {
        assert!(begun.elapsed() < SETTLE_MAX, "what was accepted is routed in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut missing = BTreeSet::new();
    for chunk in positions.chunks(ASKED_MAX) {
        let stored = store.bodies(chunk.to_vec()).await.unwrap();
        let is_good = |pos: &Pos, stored: &StoredEvent| matches!(stored, StoredEvent::Event(e) if e.id.pos == *pos && is_whole(&e.data));
        let pairs = chunk.iter().zip(&stored);
        missing.extend(pairs.filter(|(pos, stored)| !is_good(pos, stored)).map(|(pos, _)| *pos));
    }
    report.cycles += 1;
    report.acknowledged += positions.len();
    missing
}

fn is_whole(data: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(data).is_ok_and(|json| json["mark"].is_string())
}

/// Kills a writer again and again, at a time between 20 and 220 ms after it
/// began.
pub async fn kill_cycles(folder: &Path, plan: Plan, cycles: u32) -> Report {
    let mut report = Report::default();
    for _ in 0..cycles {
        let writer = Writer::start(folder, plan);
        let time = Duration::from_millis(20 + rand::random::<u64>() % 200);
        let mut said: Vec<_> = writer.listen(time).into_iter().map(|(_, said)| said).collect();
        said.extend(writer.kill());
        let lost = missing(folder, &acknowledged(&said), plan, &mut report).await;
        report.lost += lost.len();
        assert!(lost.is_empty(), "acknowledged and not there: {lost:?}; {report:?}");
    }
    report
}
