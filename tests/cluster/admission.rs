//! What the API server refuses, and what it says: `tests/manifests/refused`
//! holds one wrong manifest a file, its first line the message that a user must
//! see from `kubectl apply`.

use std::fs;

use futures::{StreamExt, stream};

use crate::support::{Scope, in_namespace, kubectl, repository};

/// How many kubectl processes run at once.
const PARALLEL: usize = 4;

async fn refusal(scope: &Scope, path: std::path::PathBuf) -> Result<(), String> {
    let text = fs::read_to_string(&path).unwrap();
    let expected =
        text.lines().next().and_then(|l| l.strip_prefix("# refused: ")).expect("the first line says the message");
    let file = path.to_string_lossy();
    let output = kubectl(&["apply", "--dry-run=server", "-n", &scope.namespace, "-f", &file]).await;
    let said = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
    if output.status.success() {
        return Err(format!("{file}: was accepted, expected: {expected}"));
    }
    if said.contains(expected) { Ok(()) } else { Err(format!("{file}:\n  expected: {expected}\n  said:     {said}")) }
}

#[test]
fn every_wrong_manifest_is_refused_with_a_message_that_names_the_field() {
    in_namespace("refused", |scope| async move {
        let folder = repository().join("tests/manifests/refused");
        let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        assert!(paths.len() >= 30, "only {} manifests", paths.len());
        let wrong: Vec<String> = stream::iter(paths)
            .map(|path| refusal(&scope, path))
            .buffer_unordered(PARALLEL)
            .filter_map(|r| async move { r.err() })
            .collect()
            .await;
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

#[test]
fn what_was_applied_reads_back_without_drift() {
    in_namespace("drift", |scope| async move {
        let folder = repository().join("tests/manifests/accepted");
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let file = path.to_string_lossy().into_owned();
            let applied = kubectl(&["apply", "-n", &scope.namespace, "-f", &file]).await;
            assert!(applied.status.success(), "{file}: {}", String::from_utf8_lossy(&applied.stderr));
            let diff = kubectl(&["diff", "-n", &scope.namespace, "-f", &file]).await;
            assert!(diff.status.success(), "{file} drifts:\n{}", String::from_utf8_lossy(&diff.stdout));
        }
    });
}
