//! The pool's last spec, kept in the folder in memory: a container that restarts
//! while the API server is away dials under the rules that it knew last.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::watch;

use crate::{api::DeliveryPoolSpec, routing::watch::PoolView};

const FILE: &str = "pool.json";
/// Bytes of the file at most: a spec has some KiB.
const BYTES_MAX: u64 = 1024 * 1024;

/// What was kept; [`PoolView::NotSeen`] if there is nothing that can be used.
pub(super) fn read(folder: &Path) -> PoolView {
    let path = folder.join(FILE);
    if fs::metadata(&path).is_ok_and(|file| file.len() > BYTES_MAX) {
        return PoolView::NotSeen;
    }
    let kept = fs::read(&path).ok().and_then(|json| serde_json::from_slice::<DeliveryPoolSpec>(&json).ok());
    kept.map_or(PoolView::NotSeen, |spec| PoolView::Spec(Arc::new(spec)))
}

/// Keeps every new spec, for ever. A pool that is gone, or cannot be read, leaves
/// the last one.
pub(super) async fn follow(folder: PathBuf, mut pool: watch::Receiver<PoolView>) {
    loop {
        let view = pool.borrow_and_update().clone();
        if let PoolView::Spec(spec) = view
            && let Err(error) = write(&folder, &spec)
        {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the rules of the pool do not survive a restart of the container");
        }
        if pool.changed().await.is_err() {
            return;
        }
    }
}

/// The folder is in memory, so nothing needs a sync.
fn write(folder: &Path, spec: &DeliveryPoolSpec) -> io::Result<()> {
    let temporary = folder.join("pool.json.new");
    fs::write(&temporary, serde_json::to_vec(spec)?)?;
    fs::rename(temporary, folder.join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_is_no_spec_is_as_if_it_were_not_there() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()), PoolView::NotSeen);
        let spec: DeliveryPoolSpec =
            serde_json::from_value(serde_json::json!({ "egress": { "schemes": ["http"] } })).unwrap();
        write(folder.path(), &spec).unwrap();
        assert_eq!(read(folder.path()), PoolView::Spec(Arc::new(spec)));
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert_eq!(read(folder.path()), PoolView::NotSeen);
    }
}
