//! The table at the end, and what the disk does meanwhile.

use crate::{disk, setup::Settings};

pub struct Report {
    rows: Vec<[String; 3]>,
    settings: String,
    pub sync_p50_ms: f64,
    pub sync_p99_ms: f64,
}

impl Report {
    pub fn new(settings: &Settings) -> Self {
        let (sync_p50_ms, sync_p99_ms) = disk::sync_ms(&settings.folder);
        let Settings { seconds, rounds, warm_up, .. } = settings;
        Self {
            rows: Vec::new(),
            settings: format!("medians of {rounds} windows of {seconds} s after {warm_up} events of warm-up"),
            sync_p50_ms,
            sync_p99_ms,
        }
    }

    pub fn row(&mut self, figure: &str, goal: &str, measured: String) {
        eprintln!("{figure}: {measured} (goal {goal})");
        self.rows.push([figure.to_owned(), goal.to_owned(), measured]);
    }

    pub fn print(&self) {
        println!(
            "\n{}; fdatasync of this disk p50 {:.1} ms, p99 {:.1} ms\n",
            self.settings, self.sync_p50_ms, self.sync_p99_ms
        );
        println!("| figure | goal | measured |\n|---|---|---|");
        for [figure, goal, measured] in &self.rows {
            println!("| {figure} | {goal} | {measured} |");
        }
    }
}
