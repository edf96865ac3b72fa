//! `posthorn store` as a process, on a store under writes.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use posthorn::store::{Accepted, History, Ingest, Partition, StoredEvent};
use tempfile::TempDir;

use crate::faults_kit::{
    damage,
    oracle::acknowledged,
    writer::{self, Plan, Said, Writer},
};

fn posthorn(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_posthorn")).arg("store").args(arguments).output().unwrap()
}

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn heard(writer: &Writer, ms: u64) -> Vec<Said> {
    writer.listen(Duration::from_millis(ms)).into_iter().map(|(_, said)| said).collect()
}

#[tokio::test]
async fn a_backup_under_writes_restores_everything_that_was_acknowledged_before_it() {
    let folder = TempDir::new().unwrap();
    let (store, file, new) = (folder.path().join("store"), folder.path().join("b.db"), folder.path().join("new"));
    let writer = Writer::start(&store, Plan::default());
    let before = acknowledged(&heard(&writer, 300));
    let backup = posthorn(&["backup", "--folder", path(&store), "--to", path(&file)]);
    assert!(backup.status.success(), "{}", text(&backup.stderr));
    assert!(!acknowledged(&heard(&writer, 100)).is_empty(), "the store goes on");
    writer.kill();

    let verified = posthorn(&["verify", "--file", path(&file)]);
    assert!(verified.status.success(), "{}", text(&verified.stdout));
    assert!(text(&verified.stdout).contains("Everything is as it should be."), "{}", text(&verified.stdout));

    let restored = posthorn(&["restore", "--file", path(&file), "--folder", path(&new), "--pool", "default"]);
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    let told = text(&restored.stdout);
    let (opened, _news) = writer::open(&new, 1 << 30).unwrap();
    assert!(told.contains(&format!("posthorn.dev/accept-store={}", opened.store_id())), "{told}");
    let stored = opened.bodies(before.clone()).await.unwrap();
    let mut ids = Vec::new();
    for stored in stored {
        let StoredEvent::Event(event) = stored else { panic!("{stored:?}") };
        ids.push(event.id);
    }
    assert!(ids.iter().all(|id| id.epoch == 1), "ids of the backup stay");
    writer::register(&opened, 2).await;
    let accepted = opened.accept(vec![writer::event("new", 100)]).await.unwrap();
    let [Accepted::New(id)] = accepted[..] else { panic!("{accepted:?}") };
    assert_eq!(id.epoch, 2, "an id that was given out after the backup is never made again");
    let totals = opened.totals().await.unwrap();
    assert!(totals.events > before.len() as u64);
    let old = writer::open(&store, 1 << 30).unwrap().0;
    assert_ne!(old.store_id(), opened.store_id(), "a restored store is another store");
}

#[tokio::test]
async fn a_backup_goes_through_a_pipe_both_ways() {
    let folder = TempDir::new().unwrap();
    let (store, new) = (folder.path().join("store"), folder.path().join("new"));
    let all = damage::store_with(&store, 100).await;
    let backup = posthorn(&["backup", "--folder", path(&store), "--to", "-"]);
    assert!(backup.status.success(), "{}", text(&backup.stderr));
    assert!(text(&backup.stderr).contains("written to stdout"), "talk goes to stderr: {}", text(&backup.stderr));
    let mut restore = Command::new(env!("CARGO_BIN_EXE_posthorn"))
        .args(["store", "restore", "--file", "-", "--pool", "default", "--folder", path(&new)])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut restore.stdin.take().unwrap(), &backup.stdout).unwrap();
    assert!(restore.wait().unwrap().success());
    assert!(damage::corrupt(&new, &all).await.is_empty());
    for left in [&store, &new] {
        let files = std::fs::read_dir(left).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let others: Vec<_> = files.filter(|name| !name.starts_with("store.")).collect();
        assert!(others.is_empty(), "{others:?}");
    }
}

#[tokio::test]
async fn verify_tells_what_is_wrong_and_ends_with_1() {
    let folder = TempDir::new().unwrap();
    damage::store_with(folder.path(), 20).await;
    let good = posthorn(&["verify", "--folder", path(folder.path())]);
    assert!(good.status.success());
    let told = text(&good.stdout);
    let lines: Vec<_> = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in ["Events 20", "Deliveries routed 40", "owed 40", "dead 0"] {
        assert!(lines.iter().any(|l| l == line), "{told}");
    }
    damage::flip_bit_of(folder.path(), 3);
    let bad = posthorn(&["verify", "--folder", path(folder.path())]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stdout).contains("1 event(s) do not fit their checksum"), "{}", text(&bad.stdout));
    damage::garble_page(folder.path(), 0, 0);
    let broken = posthorn(&["verify", "--folder", path(folder.path())]);
    assert_eq!(broken.status.code(), Some(1));
    assert!(text(&broken.stdout).contains("no store of Posthorn"), "{}", text(&broken.stdout));
}

#[tokio::test]
async fn nothing_is_overwritten_and_nothing_broken_is_restored() {
    let folder = TempDir::new().unwrap();
    let (store, file, new) = (folder.path().join("store"), folder.path().join("b.db"), folder.path().join("new"));
    let all = damage::store_with(&store, 20).await;
    assert!(posthorn(&["backup", "--folder", path(&store), "--to", path(&file)]).status.success());

    let refused = |arguments: &[&str], reason: &str| {
        let output = posthorn(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text(&output.stderr).contains(reason), "{arguments:?}: {}", text(&output.stderr));
    };
    refused(&["backup", "--folder", path(&store), "--to", path(&file)], "exists already");
    refused(&["backup", "--folder", path(folder.path()), "--to", path(&new)], "there is no store in");
    let restore = ["restore", "--file", path(&file), "--pool", "default", "--folder"];
    refused(&[&restore[..], &[path(&store)]].concat(), "exists already");
    refused(&["verify", "--file", path(&new)], "there is no");
    assert!(damage::corrupt(&store, &all).await.is_empty(), "the store is as it was");

    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    refused(&[&restore[..], &[path(&new)]].concat(), "cannot be restored");
    assert!(!new.join("store.db").exists());
    std::fs::write(&file, "no database").unwrap();
    refused(&[&restore[..], &[path(&new)]].concat(), "no store of Posthorn");
}
