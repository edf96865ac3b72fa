//! The one client that dials endpoints.
//!
//! Whatever goes to an endpoint, probe or delivery, goes through [`Client::send`]
//! with a [`Destination`] that `policy::egress` made. Between them and the wire:
//! 1. the name is resolved as an absolute name ([`resolver`]);
//! 2. every address is judged, and one forbidden address refuses all;
//! 3. exactly those addresses are dialed, and the peer is compared with them
//!    ([`connector`]), so no second look-up can lead elsewhere;
//! 4. TLS is checked against the name ([`tls`]);
//! 5. one request goes out, one answer comes back, within a budget of time and
//!    bytes ([`client`]).
//!
//! It never follows a redirect, uses a proxy, keeps a cookie or decompresses.

pub mod client;
pub mod connector;
pub mod error;
mod pool;
pub mod resolver;
pub mod service;
pub mod tls;

pub use self::{
    client::{Budgets, Client, Clients, EgressAnswer, EgressRequest, InvalidRequest},
    error::{EgressError, Failure},
    resolver::{Resolve, ResolveError, SystemResolver},
    service::{ServiceError, ServiceResolver, ServiceTarget},
    tls::{TlsError, public_roots},
};
pub use crate::policy::egress::Destination;
