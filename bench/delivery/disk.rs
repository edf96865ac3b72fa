//! What a sync costs on this disk, which every figure of latency stands on.

use std::{io::Write, path::Path, time::Instant};

const SYNCS: usize = 500;

/// p50 and p99 of `fdatasync` after an append of 4 KiB, in ms.
pub fn sync_ms(folder: &Path) -> (f64, f64) {
    let mut file = tempfile::tempfile_in(folder).unwrap();
    let block = [0_u8; 4096];
    let mut micros: Vec<u32> = (0..SYNCS)
        .map(|_| {
            file.write_all(&block).unwrap();
            let start = Instant::now();
            file.sync_data().unwrap();
            start.elapsed().as_micros() as u32
        })
        .collect();
    micros.sort_unstable();
    (crate::setup::quantile_ms(&micros, 0.5), crate::setup::quantile_ms(&micros, 0.99))
}
