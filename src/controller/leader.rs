//! Which replica of the controller works: leader election by a Lease.
//!
//! Never two at once, as far as a Lease can promise it: every write carries the
//! resourceVersion that was read, so of two candidates one gets a conflict. No
//! clock is compared between nodes: a candidate takes over when *it* has seen no
//! renewal for the Lease's duration on its own monotonic clock, or at once when
//! the leader gave the Lease back. The leader gives up after [`RENEW_DEADLINE`]
//! without a renewal, before anybody else may take over; all its work then stops, and it stands again.
//! Why not a crate: `docs/decisions/0004-own-lease.md`.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{sleep, timeout};

use crate::runtime::clock;

/// Name of the Lease.
pub const LEASE_NAME: &str = "posthorn-controller";
/// How long a Lease holds after its last renewal, in seconds.
pub const LEASE_SECONDS: i32 = 15;
/// A leader that could not renew for so long stops.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two renewals.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(5);
/// Time between two looks of a candidate, and between a failed renewal and the next.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Time for one call of the API server.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);

/// A replica that stands for election.
#[derive(Clone)]
pub struct Candidate {
    api: Api<Lease>,
    identity: String,
}

/// Why a renewal failed for so long that another replica may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Another replica holds the Lease.
    #[error("another replica holds the Lease {LEASE_NAME}")]
    Taken,
    /// The API server could not be reached.
    #[error("the Lease {LEASE_NAME} could not be renewed for {} s", RENEW_DEADLINE.as_secs())]
    NotRenewed,
}

/// What a candidate saw of another holder, and since when on its own clock.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Observed {
    resource_version: Option<String>,
    since: Instant,
}

/// What a candidate does next.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Create(Lease),
    Replace(Lease),
    Wait,
}

impl Candidate {
    /// A candidate for the Lease in `namespace` under the name `identity`.
    pub fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self { api: Api::namespaced(client, namespace), identity }
    }

    /// Waits until this replica leads.
    pub async fn lead(&self) {
        let mut observed = None;
        loop {
            match timeout(CALL_TIMEOUT * 2, self.try_lead(&mut observed)).await {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "cannot read or write the Lease {LEASE_NAME}"),
                Err(_elapsed) => tracing::warn!("the API server does not answer for the Lease {LEASE_NAME}"),
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    async fn try_lead(&self, observed: &mut Option<Observed>) -> Result<bool, kube::Error> {
        let lease = self.api.get_opt(LEASE_NAME).await?;
        let step = claim(lease.as_ref(), &self.identity, observed, clock::monotonic(), clock::now());
        let written = match step {
            Step::Wait => return Ok(false),
            Step::Create(lease) => self.api.create(&PostParams::default(), &lease).await,
            Step::Replace(lease) => self.api.replace(LEASE_NAME, &PostParams::default(), &lease).await,
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Renews the Lease until it is lost.
    pub async fn hold(&self) -> Lost {
        let mut renewed_at = clock::monotonic();
        let mut pause = RENEW_INTERVAL;
        loop {
            sleep(pause).await;
            let began = clock::monotonic();
            let left = (renewed_at + RENEW_DEADLINE).saturating_duration_since(began);
            if left.is_zero() {
                return Lost::NotRenewed;
            }
            pause = RETRY_INTERVAL;
            match timeout(CALL_TIMEOUT.min(left), self.renew()).await {
                Ok(Ok(true)) => {
                    renewed_at = began;
                    pause = RENEW_INTERVAL;
                }
                Ok(Ok(false)) => return Lost::Taken,
                Ok(Err(error)) => tracing::warn!(%error, "cannot renew the Lease {LEASE_NAME}"),
                Err(_elapsed) => tracing::warn!("the API server does not answer for the Lease {LEASE_NAME}"),
            }
        }
    }

    async fn renew(&self) -> Result<bool, kube::Error> {
        let lease = self.api.get(LEASE_NAME).await?;
        if holder(&lease) != Some(self.identity.as_str()) {
            return Ok(false);
        }
        let renewed = with_spec(lease, |spec| spec.renew_time = Some(MicroTime(clock::now())));
        self.api.replace(LEASE_NAME, &PostParams::default(), &renewed).await.map(|_| true)
    }

    /// Gives the Lease back, so that another replica takes over at once. Failing
    /// costs the others the Lease's duration and nothing else.
    pub async fn release(&self) {
        let give_back = async {
            let lease = self.api.get(LEASE_NAME).await?;
            if holder(&lease) != Some(self.identity.as_str()) {
                return Ok(());
            }
            let free = with_spec(lease, |spec| {
                spec.holder_identity = None;
                spec.renew_time = Some(MicroTime(clock::now()));
            });
            self.api.replace(LEASE_NAME, &PostParams::default(), &free).await.map(|_| ())
        };
        match timeout(CALL_TIMEOUT, give_back).await {
            Ok(Ok(())) => tracing::info!("gave the Lease {LEASE_NAME} back"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot give the Lease {LEASE_NAME} back"),
            Err(_elapsed) => tracing::warn!("cannot give the Lease {LEASE_NAME} back: the API server does not answer"),
        }
    }
}

/// Whether the Lease is free for this candidate, and what to write then.
fn claim(lease: Option<&Lease>, identity: &str, observed: &mut Option<Observed>, at: Instant, now: Timestamp) -> Step {
    let Some(lease) = lease else {
        let mut fresh = Lease::default();
        fresh.metadata.name = Some(LEASE_NAME.to_owned());
        return Step::Create(taken(fresh, identity, now));
    };
    // Our own name: an earlier life of this pod. Nobody else has it.
    if holder(lease).is_none_or(|name| name == identity) {
        return Step::Replace(taken(lease.clone(), identity, now));
    }
    let version = &lease.metadata.resource_version;
    let since = match observed {
        Some(seen) if seen.resource_version == *version => seen.since,
        _ => {
            *observed = Some(Observed { resource_version: version.clone(), since: at });
            at
        }
    };
    let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(LEASE_SECONDS);
    let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    if at.duration_since(since) > duration { Step::Replace(taken(lease.clone(), identity, now)) } else { Step::Wait }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|name| !name.is_empty())
}

fn taken(lease: Lease, identity: &str, now: Timestamp) -> Lease {
    let is_new_holder = holder(&lease) != Some(identity);
    with_spec(lease, |spec| {
        spec.holder_identity = Some(identity.to_owned());
        spec.lease_duration_seconds = Some(LEASE_SECONDS);
        spec.acquire_time = Some(MicroTime(now));
        spec.renew_time = Some(MicroTime(now));
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(i32::from(is_new_holder)));
    })
}

fn with_spec(mut lease: Lease, change: impl FnOnce(&mut LeaseSpec)) -> Lease {
    change(lease.spec.get_or_insert_default());
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: Option<&str>, version: &str) -> Lease {
        let mut lease = Lease::default();
        lease.metadata.resource_version = Some(version.to_owned());
        lease.spec = Some(LeaseSpec {
            holder_identity: holder.map(str::to_owned),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(4),
            ..LeaseSpec::default()
        });
        lease
    }

    fn claimed(step: Step) -> (String, i32) {
        match step {
            Step::Create(lease) | Step::Replace(lease) => {
                let spec = lease.spec.unwrap();
                (spec.holder_identity.unwrap(), spec.lease_transitions.unwrap())
            }
            Step::Wait => panic!("waits"),
        }
    }

    #[test]
    fn a_free_or_missing_lease_is_taken_at_once() {
        let (at, now) = (clock::monotonic(), clock::now());
        let mut observed = None;
        assert_eq!(claimed(claim(None, "b", &mut observed, at, now)), ("b".to_owned(), 1));
        for free in [None, Some("")] {
            assert_eq!(claimed(claim(Some(&lease(free, "1")), "b", &mut observed, at, now)), ("b".to_owned(), 5));
        }
    }

    #[test]
    fn anothers_lease_is_taken_only_after_its_duration_without_a_renewal() {
        let (at, now) = (clock::monotonic(), clock::now());
        let mut observed = None;
        let mut look = |version: &str, seconds| {
            let step =
                claim(Some(&lease(Some("a"), version)), "b", &mut observed, at + Duration::from_secs(seconds), now);
            step != Step::Wait
        };
        assert!(!look("1", 0));
        assert!(!look("1", 15));
        assert!(!look("2", 16), "renewed meanwhile");
        assert!(!look("2", 31));
        assert!(look("2", 32));
    }

    #[test]
    fn the_write_carries_the_version_that_was_read_so_only_one_candidate_wins() {
        let mut observed = None;
        let step = claim(Some(&lease(None, "7")), "b", &mut observed, clock::monotonic(), clock::now());
        let Step::Replace(lease) = step else { panic!("{step:?}") };
        assert_eq!(lease.metadata.resource_version.as_deref(), Some("7"));
    }

    #[test]
    fn a_restarted_leader_takes_its_own_lease_without_a_transition() {
        let mut observed = None;
        let step = claim(Some(&lease(Some("b"), "7")), "b", &mut observed, clock::monotonic(), clock::now());
        assert_eq!(claimed(step), ("b".to_owned(), 4));
    }
}
