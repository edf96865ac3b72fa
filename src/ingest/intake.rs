//! How many requests and bytes may be under way: in all, and for one namespace,
//! so that one tenant cannot take what the others need.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Requests under way in all.
pub const REQUESTS_MAX: usize = 2_048;
/// Requests under way for one namespace.
pub const REQUESTS_PER_NAMESPACE_MAX: usize = 512;
/// Bytes of bodies in memory in all: 64 MiB.
pub const BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of bodies in memory for one namespace: 16 MiB, so two of the largest
/// batches.
pub const BODIES_PER_NAMESPACE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crowded {
    /// The namespace has its share.
    Namespace,
    /// All together have all.
    Pod,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    requests: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Loads {
    all: Load,
    by_namespace: HashMap<Arc<str>, Load>,
}

/// Counts what is under way. Clones share the count.
#[derive(Clone, Debug, Default)]
pub(super) struct Intake(Arc<Mutex<Loads>>);

/// The right to one request; given back with its bytes when dropped.
#[derive(Debug)]
pub(super) struct Place {
    intake: Intake,
    namespace: Arc<str>,
    bytes: usize,
}

impl Intake {
    /// A place for a request.
    pub(super) fn enter(&self, namespace: Arc<str>) -> Result<Place, Crowded> {
        let mut loads = self.lock();
        if loads.all.requests >= REQUESTS_MAX {
            return Err(Crowded::Pod);
        }
        let own = loads.by_namespace.entry(Arc::clone(&namespace)).or_default();
        if own.requests >= REQUESTS_PER_NAMESPACE_MAX {
            return Err(Crowded::Namespace);
        }
        own.requests += 1;
        loads.all.requests += 1;
        drop(loads);
        Ok(Place { intake: self.clone(), namespace, bytes: 0 })
    }

    fn lock(&self) -> MutexGuard<'_, Loads> {
        // The arithmetic under the lock cannot panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Room for so many bytes more.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Crowded> {
        let mut loads = self.intake.lock();
        let all = loads.all.bytes.saturating_add(bytes);
        if all > BODIES_BYTES_MAX {
            return Err(Crowded::Pod);
        }
        let Some(own) = loads.by_namespace.get_mut(&self.namespace) else { return Err(Crowded::Pod) };
        let sum = own.bytes.saturating_add(bytes);
        if sum > BODIES_PER_NAMESPACE_BYTES_MAX {
            return Err(Crowded::Namespace);
        }
        own.bytes = sum;
        loads.all.bytes = all;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut loads = self.intake.lock();
        let give_back = |load: &mut Load| {
            load.requests = load.requests.saturating_sub(1);
            load.bytes = load.bytes.saturating_sub(self.bytes);
        };
        give_back(&mut loads.all);
        if let Some(own) = loads.by_namespace.get_mut(&self.namespace) {
            give_back(own);
            if own.requests == 0 {
                loads.by_namespace.remove(&self.namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_its_share_of_requests_and_leaves_the_rest_to_others() {
        let intake = Intake::default();
        let taken: Vec<_> = (0..REQUESTS_PER_NAMESPACE_MAX).map(|_| intake.enter("a".into()).unwrap()).collect();
        assert_eq!(intake.enter("a".into()).unwrap_err(), Crowded::Namespace);
        assert!(intake.enter("b".into()).is_ok());
        drop(taken);
        assert!(intake.enter("a".into()).is_ok());
        assert!(intake.lock().by_namespace.is_empty(), "an idle namespace takes no memory");
    }

    #[test]
    fn all_namespaces_together_have_a_limit() {
        let intake = Intake::default();
        let mut taken: Vec<_> = (0..REQUESTS_MAX).map(|i| intake.enter(format!("n{i}").into()).unwrap()).collect();
        assert_eq!(intake.enter("one-more".into()).unwrap_err(), Crowded::Pod);
        assert!(!intake.lock().by_namespace.contains_key("one-more"));
        taken.pop();
        assert!(intake.enter("one-more".into()).is_ok());
    }

    #[test]
    fn bytes_are_counted_to_the_last_and_given_back() {
        let intake = Intake::default();
        let fill = |namespace: &str| {
            let mut place = intake.enter(namespace.into()).unwrap();
            place.grow(BODIES_PER_NAMESPACE_BYTES_MAX).unwrap();
            place
        };
        let mut first = fill("a");
        assert_eq!(first.grow(1), Err(Crowded::Namespace));
        let others: Vec<_> = ["b", "c", "d"].into_iter().map(fill).collect();
        let mut late = intake.enter("e".into()).unwrap();
        assert_eq!(late.grow(1), Err(Crowded::Pod));
        drop(first);
        assert_eq!(late.grow(1), Ok(()));
        assert_eq!(late.grow(usize::MAX), Err(Crowded::Pod));
        drop((late, others));
        assert_eq!(intake.lock().all, Load::default());
    }
}
