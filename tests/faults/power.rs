//! The power is cut while events are accepted.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    disk::Disk,
    kit::{
        oracle::{Report, acknowledged, missing},
        writer::{Plan, Said, Writer},
    },
    scaled,
};

/// Within this time a writer whose disk is gone has said so and ended.
const END_MAX: Duration = Duration::from_secs(20);
const DISK_MIB: u64 = 256;

#[tokio::test]
async fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let mut disk = Disk::new(DISK_MIB);
    let mut report = Report::default();
    // Acknowledged while the power was being cut: they may be there or not.
    let mut lost_in_the_cut = 0;
    for cycle in 0..scaled(3, 30) {
        let plan = Plan { hooks: if cycle % 3 == 2 { 80 } else { 2 }, size_bytes: 128 << 20, ..Plan::default() };
        let folder = disk.path().join(format!("store-{}", plan.hooks));
        let mut writer = Writer::start(&folder, plan);
        let time = Duration::from_millis(20 + rand::random::<u64>() % 300);
        let before: Vec<Said> = writer.listen(time).into_iter().map(|(_, said)| said).collect();
        disk.cut_power();
        let mut after: Vec<Said> = writer.listen(END_MAX).into_iter().map(|(_, said)| said).collect();
        assert!(after.iter().any(|said| matches!(said, Said::Failed(_))), "a writer without a disk says so");
        let (is_good, rest) = writer.wait();
        assert!(!is_good, "a process whose store failed ends with an error");
        after.extend(rest);
        disk.restore_power();
        let (before, after) = (acknowledged(&before), acknowledged(&after));
        let lost: BTreeSet<_> = missing(&folder, &before, plan, &mut report).await;
        report.lost += lost.len();
        assert!(lost.is_empty(), "cycle {cycle}: acknowledged and not there: {lost:?}; {report:?}");
        let mut unsure = Report::default();
        lost_in_the_cut += missing(&folder, &after, plan, &mut unsure).await.len();
    }
    assert!(report.acknowledged > 0, "{report:?}");
    println!("power cuts: {report:?}; of those acknowledged in the moment of the cut, {lost_in_the_cut} were lost");
}
