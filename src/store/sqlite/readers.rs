//! Connections that only read, and threads to read on.

use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, Result};
use tokio::sync::Semaphore;

use super::open::Database;
use crate::store::StoreError;

/// Connections of each pool.
const CONNECTIONS: usize = 2;

/// Some connections; a read waits for one of them.
pub(super) struct Readers {
    connections: Arc<Mutex<Vec<Connection>>>,
    permits: Semaphore,
}

impl Readers {
    pub(super) fn open(database: &Database) -> Result<Self> {
        let connections = (0..CONNECTIONS).map(|_| database.reader()).collect::<Result<_>>()?;
        Ok(Self { connections: Arc::new(Mutex::new(connections)), permits: Semaphore::new(CONNECTIONS) })
    }

    /// Runs a query on a thread that may block, in one read transaction: all that
    /// it sees is of one moment.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, StoreError> {
        let failed = |text: &str| StoreError::Failed(text.into());
        let permit = self.permits.acquire().await.map_err(|_| failed("it is closed"))?;
        let connections = self.connections.clone();
        let pooled = move || connections.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some(db) = pooled() else { return Err(failed("a reader was lost")) };
        let connections = self.connections.clone();
        let read = tokio::task::spawn_blocking(move || {
            // Back into the pool even if the query panics.
            let lent = Lent { db: Some(db), connections };
            lent.in_transaction(query)
        });
        let answer = read.await;
        drop(permit);
        match answer {
            Ok(answer) => answer.map_err(|error| failed(&error.to_string())),
            Err(_) => Err(failed("a read was cut off")),
        }
    }
}

struct Lent {
    db: Option<Connection>,
    connections: Arc<Mutex<Vec<Connection>>>,
}

impl Lent {
    fn in_transaction<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let Some(db) = &self.db else { return Err(rusqlite::Error::InvalidQuery) };
        // Rolled back at its drop: nothing was written.
        let transaction = db.unchecked_transaction()?;
        query(&transaction)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).extend(self.db.take());
    }
}
