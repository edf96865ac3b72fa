//! Names to addresses, by the name servers of the system.

use std::{net::IpAddr, time::Duration};

use futures::future::BoxFuture;
use hickory_resolver::{
    ResolverBuilder, TokioResolver,
    config::{LookupIpStrategy, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::{ProtoError, rr::Name},
};

/// Time that a look-up may take.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Addresses that a name may have at most. More is refused: a name server that
/// answers so is broken, or wants to be tried often.
pub const ADDRESSES_MAX: usize = 16;

/// Time after which a question is put to the next name server.
const QUESTION_TIMEOUT: Duration = Duration::from_millis(900);
/// Answers in memory.
const CACHE_ANSWERS_MAX: u64 = 1024;
/// An answer is kept no longer than this, whatever its TTL says, so that an
/// endpoint that moves is found again.
const CACHE_TIME_MAX: Duration = Duration::from_secs(60);
/// That a name does not exist is kept no longer than this: it may just be made.
const CACHE_NEGATIVE_TIME_MAX: Duration = Duration::from_secs(5);

/// Turns names into addresses. The caller judges the addresses; an
/// implementation does not.
pub trait Resolve: Send + Sync {
    /// All addresses of a name. The name is absolute: no search list is used,
    /// because `ndots:5` would turn `foo.bar` into `foo.bar.svc.cluster.local`.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>>;
}

/// Why a name has no addresses. For operators.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Not a name that DNS could have.
    #[error("the name cannot be asked for")]
    Name(#[source] ProtoError),
    /// The name servers gave no address.
    #[error("the name servers gave no address")]
    Lookup(#[source] NetError),
    /// The name servers did not answer in time.
    #[error("the name servers did not answer within {RESOLVE_TIMEOUT:?}")]
    TimedOut,
    /// Too many addresses.
    #[error("the name has {0} addresses; at most {ADDRESSES_MAX} are accepted")]
    TooMany(usize),
    /// Another implementation's words.
    #[error("{0}")]
    Other(&'static str),
}

/// The name servers of `/etc/resolv.conf`.
pub struct SystemResolver(TokioResolver);

impl SystemResolver {
    /// Reads the system's configuration. To be called inside a runtime.
    ///
    /// # Errors
    /// [`ResolveError::Lookup`] if the configuration cannot be read.
    pub fn from_system() -> Result<Self, ResolveError> {
        Self::build(TokioResolver::builder_tokio().map_err(ResolveError::Lookup)?)
    }

    /// Asks these name servers. To be called inside a runtime.
    ///
    /// # Errors
    /// [`ResolveError::Lookup`] if the configuration cannot be used.
    pub fn from_config(config: ResolverConfig) -> Result<Self, ResolveError> {
        Self::build(TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()))
    }

    fn build(mut builder: ResolverBuilder<TokioRuntimeProvider>) -> Result<Self, ResolveError> {
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.timeout = QUESTION_TIMEOUT;
        options.attempts = 1;
        options.cache_size = CACHE_ANSWERS_MAX;
        options.positive_max_ttl = Some(CACHE_TIME_MAX);
        options.negative_max_ttl = Some(CACHE_NEGATIVE_TIME_MAX);
        builder.build().map(Self).map_err(ResolveError::Lookup)
    }
}

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        Box::pin(async move {
            let mut name = Name::from_ascii(host).map_err(ResolveError::Name)?;
            name.set_fqdn(true);
            let answer = self.0.lookup_ip(name).await.map_err(ResolveError::Lookup)?;
            Ok(answer.iter().collect())
        })
    }
}
