//! A sync that takes long. One that fails: `tests/pod/disk.rs`.

use std::time::Duration;

use tempfile::TempDir;

use crate::{
    kit::{
        oracle::{Report, acknowledged, missing},
        writer::{Plan, Said, Writer},
    },
    scaled,
};

const DELAY: &str = "inject=fsync,fdatasync:delay_enter=200ms";

#[tokio::test]
async fn slow_syncs_slow_publishers_down_and_lose_nothing() {
    let folder = TempDir::new().unwrap();
    let plan = Plan { publishers: 64, ..Plan::default() };
    let wrapper = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", DELAY];
    let seconds = u64::from(scaled(4, 60));
    let writer = Writer::start_under(&wrapper, folder.path(), plan);
    let said: Vec<Said> = writer.listen(Duration::from_secs(seconds)).into_iter().map(|(_, said)| said).collect();
    let all = acknowledged(&said);
    let failed = said.iter().find(|said| matches!(said, Said::Failed(_)));
    assert_eq!(failed, None, "a slow disk is no fault");
    // A sync is shared by whoever waits: alone, each would get one in 200 ms.
    let alone = usize::try_from(seconds * 5).unwrap();
    assert!(all.len() > 8 * alone, "{} acknowledged in {seconds} s", all.len());
    assert!(all.len() <= 64 * alone, "{} acknowledged in {seconds} s without a sync each", all.len());
    let rest = writer.kill();
    let mut report = Report::default();
    let all: Vec<_> = all.into_iter().chain(acknowledged(&rest)).collect();
    let lost = missing(folder.path(), &all, plan, &mut report).await;
    assert!(lost.is_empty(), "{lost:?}; {report:?}");
    println!("slow sync: {report:?} in {seconds} s");
}
