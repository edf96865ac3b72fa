//! `posthorn store`: copy, check and restore the store of a pool. The image has
//! no shell and no `tar`, so `-` stands for stdout and stdin:
//! `kubectl exec posthorn-default-0 -- posthorn store backup --to - > FILE`.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use crate::store::{
    DiscardReason,
    sqlite::{BackupError, DATABASE_FILE, Verification, backup, restore, verify},
};

/// Copy, check and restore the store of a pool.
#[derive(Args, Debug)]
pub struct StoreArguments {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Subcommand, Debug)]
enum StoreCommand {
    /// Copy the store into one file, also while the pod runs.
    Backup {
        /// Folder of the store.
        #[arg(long, value_name = "FOLDER", default_value = FOLDER)]
        folder: PathBuf,
        /// File to write; must not exist. `-`: stdout.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Check structure, schema, every event's checksum and the sum of all states.
    /// Better on a backup than on a busy store.
    Verify {
        /// Folder of a store.
        #[arg(long, value_name = "FOLDER", required_unless_present = "file", conflicts_with = "file")]
        folder: Option<PathBuf>,
        /// A backup.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Make a store of a backup, under a new id. The pod must not run.
    Restore {
        /// The backup. `-`: stdin.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Folder of the new store; must not hold one.
        #[arg(long, value_name = "FOLDER", default_value = FOLDER)]
        folder: PathBuf,
        /// Name of the DeliveryPool that will use it.
        #[arg(long, value_name = "POOL")]
        pool: String,
    },
}

/// Where a delivery pod has its store.
const FOLDER: &str = "/data";
/// Stands for stdout and stdin.
const STANDARD: &str = "-";
/// A backup on its way through stdout or stdin, in the folder of the store.
const TRANSIT_FILE: &str = "transit.db";

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum StoreCommandError {
    /// No backup was made or restored.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The file cannot be read.
    #[error("{} cannot be read as a store", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// There is no such file.
    #[error("there is no {}", .0.display())]
    NoFile(PathBuf),
    /// stdin or stdout ended.
    #[error("the backup could not be passed on through {}", file.display())]
    Transit {
        /// The file between.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a command did.
#[derive(Debug)]
pub struct Done {
    /// To be shown: on stderr if stdout has data.
    pub text: String,
    /// Whether stdout has a backup on it.
    pub has_data: bool,
    /// Whether everything is well.
    pub is_good: bool,
}

/// Runs a command. `store_id` is the random id for a restored store.
///
/// # Errors
/// [`StoreCommandError`].
pub fn run(arguments: StoreArguments, store_id: &str) -> Result<Done, StoreCommandError> {
    match arguments.command {
        StoreCommand::Backup { folder, to } => run_backup(&folder, &to),
        StoreCommand::Verify { folder, file } => {
            let file = file.or(folder.map(|folder| folder.join(DATABASE_FILE))).unwrap_or_default();
            let found = read(&file)?;
            Ok(Done { text: report(&found), has_data: false, is_good: found.problems.is_empty() })
        }
        StoreCommand::Restore { file, folder, pool } => run_restore(&file, &folder, &pool, store_id),
    }
}

fn read(file: &Path) -> Result<Verification, StoreCommandError> {
    if !file.exists() {
        return Err(StoreCommandError::NoFile(file.to_owned()));
    }
    verify(file).map_err(|source| StoreCommandError::Unreadable { file: file.to_owned(), source })
}

fn run_backup(folder: &Path, to: &Path) -> Result<Done, StoreCommandError> {
    let has_data = to == Path::new(STANDARD);
    let transit = Transit(folder.join(TRANSIT_FILE));
    let file = if has_data { transit.begin()? } else { to };
    backup(folder, file)?;
    let bytes = fs::metadata(file).map_or(0, |m| m.len());
    if has_data {
        let pass = || io::copy(&mut File::open(&transit.0)?, &mut io::stdout().lock());
        pass().and_then(|_| io::stdout().flush()).map_err(|e| transit.failed(e))?;
    }
    let (to, check) = if has_data { ("stdout", "FILE") } else { (&*to.to_string_lossy(), &*to.to_string_lossy()) };
    let text = format!(
        "Backup of {} written to {to}, {bytes} bytes.\nCheck it with: posthorn store verify --file {check}\n",
        folder.display()
    );
    Ok(Done { text, has_data, is_good: true })
}

fn run_restore(file: &Path, folder: &Path, pool: &str, store_id: &str) -> Result<Done, StoreCommandError> {
    let transit = Transit(folder.join(TRANSIT_FILE));
    let is_stdin = file == Path::new(STANDARD);
    if is_stdin {
        let pass = || {
            fs::create_dir_all(folder)?;
            transit.remove();
            io::copy(&mut io::stdin().lock(), &mut File::create_new(&transit.0)?)
        };
        pass().map_err(|e| transit.failed(e))?;
    }
    let restored = restore(if is_stdin { &transit.0 } else { file }, folder, pool, store_id)?;
    let mut text = report(&restored);
    text.push_str(&format!(
        "\nRestored into {} as store {store_id} of DeliveryPool {pool}. What was delivered after the backup will be \
         delivered again.\nIf the pool had another store, let it take this one:\n  kubectl annotate deliverypool {pool} \
         posthorn.dev/accept-store={store_id}\n",
        folder.display()
    ));
    Ok(Done { text, has_data: false, is_good: restored.problems.is_empty() })
}

/// A file between a backup and a pipe, removed at the end.
struct Transit(PathBuf);

impl Transit {
    fn begin(&self) -> Result<&Path, StoreCommandError> {
        self.remove();
        Ok(&self.0)
    }

    fn remove(&self) {
        // Not there, or the next step says why it cannot be written.
        drop(fs::remove_file(&self.0));
    }

    fn failed(&self, source: io::Error) -> StoreCommandError {
        StoreCommandError::Transit { file: self.0.clone(), source }
    }
}

impl Drop for Transit {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What was found, as a table and sentences.
fn report(found: &Verification) -> String {
    let totals = &found.totals;
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        text.push_str(&format!("{name:<28}{value:>18}\n"));
    };
    line("Store", &found.store_id);
    line("Pool", &found.pool);
    line("Schema", &found.schema);
    line("Events", &totals.events);
    line("Bytes of events", &found.event_bytes);
    line("Scans under way", &found.scans);
    line("Deliveries routed", &totals.routed);
    line("  owed", &found.owed);
    line("  waiting for a retry", &found.waiting);
    line("  parked behind their key", &found.parked);
    line("  delivered", &totals.delivered);
    line("  dead", &totals.dead);
    for (reason, count) in DiscardReason::ALL.into_iter().zip(totals.discarded) {
        line(&format!("  discarded: {}", reason.as_str()), &count);
    }
    for problem in &found.problems {
        text.push_str(&format!("Problem: {problem}.\n"));
    }
    if found.problems.is_empty() {
        text.push_str("Everything is as it should be.\n");
    }
    text
}
