//! A store that only takes events in, and says what it is told to.

use std::{collections::VecDeque, sync::Mutex};

use futures::future::BoxFuture;
use posthorn::{
    event::{EventId, Pos},
    store::{AcceptError, Accepted, Ingest, NewEvent, Space},
};
use tokio::sync::Semaphore;

/// What the store says of each event of a batch, by its number.
pub(crate) type Verdict = Box<dyn Fn(EventId) -> Accepted + Send>;

/// The store. Without other answers, every event is new.
pub(crate) struct FakeIngest {
    /// What came in.
    pub(crate) batches: Mutex<Vec<Vec<NewEvent>>>,
    /// What the next batches are answered.
    pub(crate) answers: Mutex<VecDeque<Result<Vec<Verdict>, AcceptError>>>,
    /// What it says of its room.
    pub(crate) space: Mutex<Space>,
    /// Batches that may be answered.
    pub(crate) turns: Semaphore,
}

impl Default for FakeIngest {
    fn default() -> Self {
        Self {
            batches: Mutex::default(),
            answers: Mutex::default(),
            space: Mutex::new(Space::Free),
            turns: Semaphore::new(Semaphore::MAX_PERMITS),
        }
    }
}

/// The id that the store gives to the event of this number.
pub(crate) fn id(number: u64) -> EventId {
    EventId { time_ms: 1_795_000_000_000, epoch: 1, partition: 0, pos: Pos(number) }
}

impl Ingest for FakeIngest {
    fn accept(&self, events: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Accepted>, AcceptError>> {
        Box::pin(async move {
            let (first, count) = {
                let mut batches = self.batches.lock().unwrap();
                let first = batches.iter().map(Vec::len).sum::<usize>() as u64;
                let count = events.len() as u64;
                batches.push(events);
                (first, count)
            };
            self.turns.acquire().await.unwrap().forget();
            let verdicts = match self.answers.lock().unwrap().pop_front() {
                None => return Ok((first..first + count).map(|number| Accepted::New(id(number))).collect()),
                Some(answer) => answer?,
            };
            Ok(verdicts.iter().zip(first..first + count).map(|(verdict, number)| verdict(id(number))).collect())
        })
    }

    fn space(&self, _: &str) -> Space {
        *self.space.lock().unwrap()
    }
}
