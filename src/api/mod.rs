//! The kinds of `posthorn.dev/v1alpha1`: what a user applies and what the
//! controller answers in `status`.
//!
//! This module holds types, their schema and pure helpers. It never does I/O.
//! A field that is optional here has its default in code (`defaults`), not in
//! the schema: an object reads back exactly as it was applied, so GitOps tools
//! see no drift. The one exception is `status.observedGeneration: -1`, which
//! keeps a fresh object from being taken for ready (see [`crds`]).

#![allow(unreachable_pub, reason = "the KubeSchema derive repeats each type inside a function body")]
#![allow(clippy::duplicated_attributes, reason = "printer columns have attributes of the same names")]

pub mod condition;
pub mod crds;
pub mod dead_letter;
pub mod defaults;
pub mod duration;
pub mod endpoint;
pub mod event_type;
pub mod pool;
pub mod quantity;
pub mod reason;
pub mod replay;
pub mod schema;
pub mod secret_ref;
pub mod subscription;
pub mod subscription_rules;
pub mod webhook;
pub mod webhook_delivery;

pub use condition::{ConditionStatus, ConditionType};
pub use dead_letter::{DeadLetter, DeadLetterReason, DeadLetterSpec};
pub use duration::Gep2257Duration;
pub use event_type::{EventType, EventTypeSpec, EventTypeStatus};
pub use pool::{DeliveryPool, DeliveryPoolSpec, DeliveryPoolStatus};
pub use reason::{Problem, Reason};
pub use replay::{Replay, ReplaySpec, ReplayStatus};
pub use secret_ref::{SecretKeyRef, SecretNameRef};
pub use subscription::{Subscription, SubscriptionSpec, SubscriptionStatus};
pub use webhook::{Webhook, WebhookSpec, WebhookStatus};

/// The API group of all kinds of Posthorn.
pub const GROUP: &str = "posthorn.dev";
/// The only served version.
pub const VERSION: &str = "v1alpha1";

/// Label on a Namespace that names the DeliveryPool responsible for it; set by
/// cluster admins. Without it the pool is [`DEFAULT_POOL`].
pub const POOL_LABEL: &str = "posthorn.dev/pool";
/// The pool of a namespace that names none.
pub const DEFAULT_POOL: &str = "default";
/// Label on what Posthorn makes for a Webhook: the Webhook's name.
pub const WEBHOOK_LABEL: &str = "posthorn.dev/webhook";
/// Annotation on a DeliveryPool: the id of a store that its pod may use although
/// another one is recorded in `status.stores`.
pub const ACCEPT_STORE_ANNOTATION: &str = "posthorn.dev/accept-store";
/// Value of that annotation: the pod may begin a store on a volume that is empty.
pub const ACCEPT_NEW_STORE: &str = "new";
/// Annotation on a Webhook: any new value asks for a verification at once.
pub const VERIFY_REQUESTED_ANNOTATION: &str = "posthorn.dev/verify-requested-at";
/// Annotation on a Webhook: any new value makes Posthorn read the Secrets that
/// the Webhook names again at once.
pub const RELOAD_ANNOTATION: &str = "posthorn.dev/reload";
/// Field manager of everything that the controller applies but status.
pub const FIELD_MANAGER: &str = "posthorn-controller";
/// Field manager of the controller's status writes.
pub const STATUS_FIELD_MANAGER: &str = "posthorn-controller-status";
