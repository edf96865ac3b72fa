//! The dispatcher as a task: takes inputs, asks the engine, does what it says.

use std::{
    fmt,
    num::{NonZeroU64, NonZeroUsize},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures::FutureExt;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinHandle, JoinSet},
    time::Instant,
};

use super::{
    AttemptEnd, AttemptJob, AttemptReport, AttemptSender, DispatchMetrics, DispatcherHandle, FailureKind,
    asking::ask,
    engine::{Action, Engine, Now},
    handle::Command,
    health::HealthBoard,
    questions::{Question, Reply},
};
use crate::{
    api::Reason,
    runtime::clock,
    store::{HookId, HookNote, News, NewsReceiver, Partition, RecordTicket, StoreError},
};

/// News that are taken in before something is done about them.
const NEWS_BATCH: usize = 256;
/// The longest sleep: with an answer of the store's clock in between, a clock
/// that runs at another pace does no harm.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Decides which Delivery is tried when, and has it tried.
pub struct Dispatcher {
    store: Arc<dyn Partition>,
    sender: Arc<dyn AttemptSender>,
    news: NewsReceiver,
    commands: mpsc::UnboundedReceiver<Command>,
    health: Arc<HealthBoard>,
    engine: Engine,
    tasks: JoinSet<Ended>,
    recorded: watch::Receiver<RecordTicket>,
    last_ticket: RecordTicket,
    notes: mpsc::UnboundedSender<(HookId, HookNote)>,
    notes_done: JoinOnce,
}

/// What a task brings back.
enum Ended {
    Attempt(u64, Box<AttemptReport>),
    Answer { hook: HookId, serial: NonZeroU64, question: Question, reply: Result<Reply, StoreError> },
}

/// What woke the dispatcher.
enum Input {
    Command(Option<Command>),
    News,
    Ended(Result<Ended, JoinError>),
    Recorded(bool),
    Notes(Result<(), StoreError>),
    Timer,
    More,
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher").field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}

impl Dispatcher {
    /// A dispatcher of one partition, and the handle to talk to it. Nothing is
    /// sent before [`run`](Self::run). Must be called inside a tokio runtime.
    pub fn new(
        store: Arc<dyn Partition>,
        sender: Arc<dyn AttemptSender>,
        news: NewsReceiver,
        metrics: DispatchMetrics,
    ) -> (Self, DispatcherHandle) {
        Self::with_chance(store, sender, news, metrics, Box::new(clock::chance))
    }

    /// The same with chance as an argument, for tests that shall repeat.
    pub(super) fn with_chance(
        store: Arc<dyn Partition>,
        sender: Arc<dyn AttemptSender>,
        news: NewsReceiver,
        metrics: DispatchMetrics,
        chance: Box<dyn FnMut() -> f64 + Send>,
    ) -> (Self, DispatcherHandle) {
        let (send, commands) = mpsc::unbounded_channel();
        let health = Arc::new(HealthBoard::new());
        let handle = DispatcherHandle { commands: send, health: Arc::clone(&health) };
        let recorded = store.recorded();
        let (notes, notes_done) = start_notes(Arc::clone(&store));
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let dispatcher = Self {
            engine: Engine::new(metrics, chance, processors),
            store,
            sender,
            news,
            commands,
            health,
            tasks: JoinSet::new(),
            recorded,
            last_ticket: RecordTicket(0),
            notes,
            notes_done,
        };
        (dispatcher, handle)
    }

    /// Works until [`DispatcherHandle::shutdown`], or until every handle is gone.
    ///
    /// # Errors
    /// [`StoreError::Fenced`]: the partition is another's; everything was dropped
    /// without another attempt. [`StoreError::Failed`]: the process must end.
    pub async fn run(mut self) -> Result<(), StoreError> {
        let mut batch = Vec::with_capacity(NEWS_BATCH);
        loop {
            let input = self.next_input(&mut batch).await;
            if let Input::Command(Some(Command::Shutdown(grace))) = input {
                return self.shut_down(grace).await;
            }
            if matches!(input, Input::Command(None)) {
                return self.shut_down(Duration::ZERO).await;
            }
            self.take_input(input, &mut batch)?;
            if let Some(grace) = self.take_more(&mut batch)? {
                return self.shut_down(grace).await;
            }
            self.act();
        }
    }

    async fn next_input(&mut self, batch: &mut Vec<News>) -> Input {
        let now = self.store.store_now();
        let wait = self.engine.next_wake().map_or(SLEEP_MAX, |at| {
            Duration::from_millis(u64::try_from(at.0.saturating_sub(now.0)).unwrap_or_default()).min(SLEEP_MAX)
        });
        tokio::select! {
            biased;
            result = self.recorded.changed() => Input::Recorded(result.is_ok()),
            Some(ended) = self.tasks.join_next() => Input::Ended(ended),
            command = self.commands.recv() => Input::Command(command),
            _count = self.news.recv_many(batch, NEWS_BATCH), if !self.news.is_done() => Input::News,
            result = &mut self.notes_done => Input::Notes(result),
            // After whatever else is ready, on this thread as well.
            () = tokio::task::yield_now(), if self.engine.wants_step() => Input::More,
            () = tokio::time::sleep(wait) => Input::Timer,
        }
    }

    fn take_input(&mut self, input: Input, batch: &mut Vec<News>) -> Result<(), StoreError> {
        let now = self.now();
        match input {
            Input::Recorded(is_open) => {
                if !is_open {
                    return Err(StoreError::Failed("the store has ended".into()));
                }
                let ticket = *self.recorded.borrow_and_update();
                self.engine.recorded(ticket, now);
            }
            Input::Ended(ended) => self.take_ended(ended, now)?,
            Input::Command(Some(Command::Set(view))) => self.engine.set_hook(*view, now),
            Input::Command(Some(Command::Remove(hook))) => self.engine.remove_hook(hook, now),
            Input::Command(Some(Command::Reload(hook))) => self.engine.reload(hook, now),
            Input::News => {
                for news in batch.drain(..) {
                    self.take_news(news, now)?;
                }
            }
            Input::Notes(result) => return result,
            Input::Command(Some(Command::Shutdown(_)) | None) | Input::Timer | Input::More => {}
        }
        Ok(())
    }

    /// Takes what else is there already, so that one step serves it all.
    fn take_more(&mut self, batch: &mut Vec<News>) -> Result<Option<Duration>, StoreError> {
        let now = self.now();
        while let Some(ended) = self.tasks.try_join_next() {
            self.take_ended(ended, now)?;
        }
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Shutdown(grace) = command {
                return Ok(Some(grace));
            }
            self.take_input(Input::Command(Some(command)), batch)?;
        }
        Ok(None)
    }

    fn take_news(&mut self, news: News, now: Now) -> Result<(), StoreError> {
        if let News::Failed(error) = news {
            return Err(error);
        }
        self.engine.news(news, now);
        Ok(())
    }

    fn take_ended(&mut self, ended: Result<Ended, JoinError>, now: Now) -> Result<(), StoreError> {
        match ended {
            Ok(Ended::Attempt(flight, report)) => self.engine.ended(flight, *report, now),
            Ok(Ended::Answer { hook, serial, question, reply }) => {
                // The store told of changes before it showed them.
                while let Ok(news) = self.news.try_recv() {
                    self.take_news(news, now)?;
                }
                self.engine.answered(hook, serial, question, reply?, now);
            }
            // Attempts catch their panics, so this is an answer of the store that
            // never comes: without it rows would be forgotten.
            Err(error) if error.is_panic() => {
                return Err(StoreError::Failed("a question to the store ended in a panic".into()));
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// One step of the engine, and what it says.
    fn act(&mut self) {
        let now = self.now();
        self.engine.step(now);
        let mut health = Vec::new();
        for action in self.engine.take_actions() {
            match action {
                Action::Attempt(flight, job) => self.attempt(flight, *job),
                Action::Ask { hook, serial, question } => {
                    let store = Arc::clone(&self.store);
                    self.tasks.spawn(async move {
                        let reply = ask(&*store, hook, &question).await;
                        Ended::Answer { hook, serial, question, reply }
                    });
                }
                // Without a worker the dispatcher is about to end.
                Action::Note(hook, note) => self.notes.send((hook, note)).unwrap_or_default(),
                Action::Health(change) => health.push(change),
                Action::Forget(hook) => {
                    self.health.put(health.drain(..));
                    self.health.remove(hook);
                }
            }
        }
        if !health.is_empty() {
            self.health.put(health);
        }
        let outcomes = self.engine.take_outcomes();
        if !outcomes.is_empty() {
            let hooks: Vec<HookId> = outcomes.iter().map(|outcome| outcome.hook).collect();
            self.last_ticket = self.store.record(outcomes);
            self.engine.handed(self.last_ticket, hooks.into_iter());
        }
    }

    fn attempt(&mut self, flight: u64, job: AttemptJob) {
        let attempt = self.sender.attempt(job);
        self.tasks.spawn(async move {
            let report = AssertUnwindSafe(attempt).catch_unwind().await.unwrap_or_else(|_| broken());
            Ended::Attempt(flight, Box::new(report))
        });
    }

    /// Starts nothing more, waits for what runs, hands back the rest, flushes.
    async fn shut_down(mut self, grace: Duration) -> Result<(), StoreError> {
        self.engine.stop();
        self.act();
        let end = Instant::now() + grace;
        while self.engine.flights() > 0 {
            tokio::select! {
                biased;
                Some(News::Failed(error)) = self.news.recv() => return Err(error),
                Some(ended) = self.tasks.join_next() => {
                    let now = self.now();
                    self.take_ended(ended, now)?;
                    self.act();
                }
                () = tokio::time::sleep_until(end) => break,
            }
        }
        // What still runs stays owed: nothing is recorded of it.
        self.tasks.abort_all();
        let ticket = self.last_ticket;
        let Self { mut recorded, mut news, notes, notes_done, .. } = self;
        let failed = async {
            while let Some(news) = news.recv().await {
                if let News::Failed(error) = news {
                    return error;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            result = recorded.wait_for(|recorded| *recorded >= ticket) => {
                result.map_err(|_| StoreError::Failed("the store ended before the outcomes were durable".into()))?;
            }
            error = failed => return Err(error),
        }
        drop(notes);
        notes_done.await
    }

    fn now(&self) -> Now {
        Now { store: self.store.store_now(), wall: clock::now() }
    }
}

/// Notes are written one after the other: of two for one hook the later counts.
fn start_notes(store: Arc<dyn Partition>) -> (mpsc::UnboundedSender<(HookId, HookNote)>, JoinOnce) {
    let (send, mut notes) = mpsc::unbounded_channel();
    let worker = tokio::spawn(async move {
        while let Some((hook, note)) = notes.recv().await {
            store.note(hook, note).await?;
        }
        Ok(())
    });
    (send, JoinOnce(worker))
}

/// The end of the worker that writes notes.
struct JoinOnce(JoinHandle<Result<(), StoreError>>);

impl Future for JoinOnce {
    type Output = Result<(), StoreError>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        self.0.poll_unpin(context).map(|joined| {
            joined.unwrap_or_else(|_| Err(StoreError::Failed("notes on Webhooks can no longer be written".into())))
        })
    }
}

/// A sender that panics has a defect; the Delivery is tried again as ever.
fn broken() -> AttemptReport {
    tracing::error!("an attempt ended in a panic");
    AttemptReport {
        at: clock::now(),
        duration: Duration::ZERO,
        shape: 0,
        end: AttemptEnd::Failed { reason: Reason::Internal, kind: FailureKind::Other },
        detail: None,
    }
}
