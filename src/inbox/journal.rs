//! What the inbox remembers: the last requests, and how often flaky paths were
//! asked. Both are bounded.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

/// Requests that are remembered.
pub const REQUESTS_MAX: usize = 1_000;
/// Paths whose requests are counted; at the limit counting starts over.
pub const PATHS_MAX: usize = 1_000;
/// Bytes of an event's body that are remembered.
pub const BODY_BYTES_MAX: usize = 1_024;
/// Headers of a request that are remembered.
pub const HEADERS_MAX: usize = 32;
/// Bytes of a header's name and of its value that are remembered.
pub const HEADER_BYTES_MAX: usize = 256;
/// Bytes of a path that are remembered and printed.
pub const PATH_BYTES_MAX: usize = 200;

/// One request as it is remembered and shown by `/requests`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// When it came, RFC 3339.
    pub time: String,
    /// HTTP method.
    pub method: String,
    /// Path, without the query, cut off at [`PATH_BYTES_MAX`].
    pub path: String,
    /// What it was and what became of it.
    pub what: String,
    /// The status of the answer; none if there was none.
    pub status: Option<u16>,
    /// Names and values of the headers that the inbox knows; of all others only
    /// the names, since values may be credentials.
    pub headers: Vec<(String, String)>,
    /// The body of an event, cut off at [`BODY_BYTES_MAX`].
    pub body: String,
}

/// The memory of an inbox.
#[derive(Default)]
pub struct Journal(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    requests: VecDeque<Record>,
    counts: HashMap<String, u32>,
}

impl Journal {
    /// Remembers a request and forgets the oldest beyond the limit.
    pub fn add(&self, record: Record) {
        self.with(|inner| {
            if inner.requests.len() == REQUESTS_MAX {
                inner.requests.pop_front();
            }
            inner.requests.push_back(record);
        });
    }

    /// Counts a request of the path: 1 for the first.
    pub fn count(&self, path: &str) -> u32 {
        self.with(|inner| {
            if inner.counts.len() >= PATHS_MAX && !inner.counts.contains_key(path) {
                inner.counts.clear();
            }
            let count = inner.counts.entry(path.to_owned()).or_default();
            *count = count.saturating_add(1);
            *count
        })
    }

    /// The requests that are remembered, oldest first.
    pub fn requests(&self) -> Vec<Record> {
        self.with(|inner| inner.requests.iter().cloned().collect())
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut Inner) -> T) -> T {
        // A panic elsewhere leaves at worst a request that was not remembered.
        use_it(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The text, cut off at a character's edge within `bytes_max`.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_requests_are_forgotten_at_the_limit() {
        let journal = Journal::default();
        for number in 0..=REQUESTS_MAX {
            journal.add(Record {
                time: String::new(),
                method: "POST".to_owned(),
                path: number.to_string(),
                what: String::new(),
                status: None,
                headers: Vec::new(),
                body: String::new(),
            });
        }
        let requests = journal.requests();
        assert_eq!((requests.len(), requests[0].path.as_str()), (REQUESTS_MAX, "1"));
    }

    #[test]
    fn paths_count_for_themselves_within_the_limit() {
        let journal = Journal::default();
        assert_eq!([journal.count("a"), journal.count("b"), journal.count("a")], [1, 1, 2]);
        for number in 0..PATHS_MAX * 2 {
            journal.count(&number.to_string());
        }
        assert!(journal.with(|inner| inner.counts.len()) <= PATHS_MAX);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("aäb", 2), "a");
        assert_eq!(cut("aäb", 3), "aä");
        assert_eq!(cut("aäb", 9), "aäb");
    }
}
