//! What a path asks the inbox to do wrong.

use std::time::Duration;

/// Longest that `/slow` and `/hang` keep a request.
pub const HOLD_MAX: Duration = Duration::from_secs(10 * 60);

/// How a request to a path is treated. What follows after the parts named here
/// is free: `/flaky/2/a` and `/flaky/2/b` count for themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behavior {
    /// Any other path: answer as a good receiver.
    Good,
    /// `/healthz`
    Health,
    /// `/requests`: the last requests as JSON.
    Requests,
    /// `/wrong`: 200, and a challenge that is not the one that was sent.
    Wrong,
    /// `/status/<code>`
    Status(u16),
    /// `/redirect`: 302 to `/`.
    Redirect,
    /// `/slow/<ms>`: a good answer, that much later.
    Slow(Duration),
    /// `/hang`: no answer.
    Hang,
    /// `/endless`: an answer whose body does not end.
    Endless,
    /// `/drop`: the connection is closed instead of an answer.
    Drop,
    /// `/flaky/<n>`: 503 to the first n requests of this path, then good.
    Flaky(u32),
}

impl Behavior {
    /// What the path asks for.
    pub fn of(path: &str) -> Self {
        let mut parts = path.split('/').skip(1);
        let (first, second) = (parts.next().unwrap_or_default(), parts.next());
        let number = second.and_then(|n| n.parse::<u32>().ok());
        match (first, number) {
            ("healthz", _) => Self::Health,
            ("requests", _) => Self::Requests,
            ("wrong", _) => Self::Wrong,
            ("redirect", _) => Self::Redirect,
            ("hang", _) => Self::Hang,
            ("endless", _) => Self::Endless,
            ("drop", _) => Self::Drop,
            ("status", Some(code @ 200..=599)) => u16::try_from(code).map_or(Self::Good, Self::Status),
            ("slow", Some(ms)) => Self::Slow(Duration::from_millis(ms.into()).min(HOLD_MAX)),
            ("flaky", Some(count)) => Self::Flaky(count),
            _ => Self::Good,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_and_what_is_not_known_is_good() {
        let check = |path, expected| assert_eq!(Behavior::of(path), expected, "{path}");
        check("/", Behavior::Good);
        check("", Behavior::Good);
        check("/hook", Behavior::Good);
        check("/a/wrong", Behavior::Good);
        check("/wrong", Behavior::Wrong);
        check("/wrong/x", Behavior::Wrong);
        check("/status/503", Behavior::Status(503));
        check("/status/410/x", Behavior::Status(410));
        check("/status/199", Behavior::Good);
        check("/status/600", Behavior::Good);
        check("/status/70000", Behavior::Good);
        check("/redirect", Behavior::Redirect);
        check("/slow/3000", Behavior::Slow(Duration::from_secs(3)));
        check("/slow/4294967295", Behavior::Slow(HOLD_MAX));
        check("/slow/x", Behavior::Good);
        check("/hang", Behavior::Hang);
        check("/endless", Behavior::Endless);
        check("/drop", Behavior::Drop);
        check("/flaky/4", Behavior::Flaky(4));
        check("/healthz", Behavior::Health);
        check("/requests", Behavior::Requests);
    }
}
