//! The cheap faults below the store, in short. The long forms: `make faults`.

use std::time::Duration;

use posthorn::store::sqlite::{OpenError, Problem, SqliteConfig, SqliteStore, verify};
use tempfile::TempDir;

use crate::faults_kit::{
    damage,
    oracle::kill_cycles,
    router::EverythingToEveryone,
    writer::{self, Plan, Writer},
};

const SIZE_BYTES: u64 = 1 << 30;

#[tokio::test]
async fn twenty_kills_lose_nothing_that_was_acknowledged() {
    let folder = TempDir::new().unwrap();
    let report = kill_cycles(folder.path(), Plan::default(), 10).await;
    assert!(report.acknowledged > 0, "{report:?}");
    let folder = TempDir::new().unwrap();
    let fan_out = Plan { hooks: 80, ..Plan::default() };
    let report = kill_cycles(folder.path(), fan_out, 10).await;
    assert!(report.acknowledged > 0, "{report:?}");
}

#[tokio::test]
async fn a_damaged_event_is_corrupt_and_no_other_is() {
    let folder = TempDir::new().unwrap();
    let all = damage::store_with(folder.path(), 40).await;
    damage::flip_bit_of(folder.path(), 7);
    damage::flip_bit_of(folder.path(), 30);
    let found = verify(&damage::database(folder.path())).unwrap();
    assert_eq!(found.problems, [Problem::Corrupt { count: 2, first: all[7].0 }]);
    assert_eq!(damage::corrupt(folder.path(), &all).await, [all[7], all[30]]);
}

#[tokio::test]
async fn a_store_whose_structure_is_damaged_is_refused() {
    for (page, from) in [(0, 0), (0, 100), (1, 0)] {
        let folder = TempDir::new().unwrap();
        damage::store_with(folder.path(), 40).await;
        damage::garble_page(folder.path(), page, from);
        let error = writer::open(folder.path(), SIZE_BYTES).err().unwrap();
        assert!(matches!(error, OpenError::Damaged { .. }), "page {page} from {from}: {error:?}");
        assert!(error.to_string().contains("restore a backup"), "{error}");
        let problems = verify(&damage::database(folder.path())).unwrap().problems;
        assert!(matches!(problems[..], [Problem::NoStore | Problem::Structure(_), ..]), "{page} {from}: {problems:?}");
    }
}

#[tokio::test]
async fn a_schema_with_a_column_of_another_name_is_found() {
    let folder = TempDir::new().unwrap();
    damage::store_with(folder.path(), 4).await;
    damage::rename_column(folder.path());
    assert!(writer::open(folder.path(), SIZE_BYTES).is_err());
    let problems = verify(&damage::database(folder.path())).unwrap().problems;
    assert!(matches!(problems[..], [Problem::Structure(_)]), "{problems:?}");
}

#[tokio::test]
async fn a_store_that_another_process_has_is_refused_until_that_ends() {
    let folder = TempDir::new().unwrap();
    let writer = Writer::start(folder.path(), Plan::default());
    writer.listen(Duration::from_millis(20));
    let error = writer::open(folder.path(), SIZE_BYTES).err().unwrap();
    assert!(matches!(error, OpenError::Locked { .. }), "{error:?}");
    writer.kill();
    assert!(writer::open(folder.path(), SIZE_BYTES).is_ok());
}

#[tokio::test]
async fn a_foreign_and_an_empty_store_are_refused_until_they_are_accepted() {
    let folder = TempDir::new().unwrap();
    let open = |path: &str, change: fn(&mut SqliteConfig)| {
        let mut config = writer::config(&folder.path().join(path), SIZE_BYTES);
        change(&mut config);
        let router = Box::new(EverythingToEveryone::default());
        SqliteStore::open(config, router, posthorn::store::news_channel().0)
    };
    let id = open("store", |_| {}).unwrap().store_id().to_owned();
    let error = open("store", |c| c.pool = "other".into()).err().unwrap();
    assert!(matches!(&error, OpenError::Foreign { found_store, .. } if *found_store == id), "{error:?}");
    assert!(error.to_string().contains(&format!("posthorn.dev/accept-store: {id}")), "{error}");
    let error = open("empty", |c| c.expected_store = Some("gone".into())).err().unwrap();
    assert!(matches!(error, OpenError::Empty { .. }), "{error:?}");
    let accept = |c: &mut SqliteConfig| {
        c.expected_store = Some("gone".into());
        c.accept_store = Some("new".into());
    };
    assert!(open("empty", accept).is_ok());
}
