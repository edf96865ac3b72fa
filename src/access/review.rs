//! The questions to the API server.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use crate::{api::GROUP, runtime::secret::SecretString};

/// Who calls, as the API server knows it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Caller {
    /// Name: `system:serviceaccount:NAMESPACE:NAME`.
    pub username: String,
    /// UID.
    pub uid: Option<String>,
    /// Groups.
    pub groups: Vec<String>,
    /// What else authorizers may look at.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What the API server says of a token.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Review {
    /// The token is valid.
    pub authenticated: bool,
    /// For these of the audiences that were asked for.
    pub audiences: Vec<String>,
    /// Whose it is.
    pub caller: Caller,
}

impl Review {
    /// Whether the token is valid for this audience. `authenticated` alone is not
    /// enough: an API server that knows nothing of audiences says it of every
    /// valid token.
    pub fn is_for(&self, audience: &str) -> bool {
        self.authenticated && self.audiences.iter().any(|one| one == audience)
    }
}

/// The API server gave no verdict.
#[derive(Debug, thiserror::Error)]
#[error(
    "the API server gave no verdict; the pod's ServiceAccount needs create on tokenreviews and subjectaccessreviews"
)]
pub struct ReviewError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Who knows tokens.
pub trait TokenReviewer: Send + Sync {
    /// Asks about a token for an audience.
    fn review<'a>(&'a self, token: &'a SecretString, audience: &'a str) -> BoxFuture<'a, Result<Review, ReviewError>>;
}

/// Asks the API server.
#[derive(Clone)]
pub struct KubeTokenReviewer(Api<TokenReview>);

impl KubeTokenReviewer {
    /// Asks this API server.
    pub fn new(client: Client) -> Self {
        Self(Api::all(client))
    }
}

impl TokenReviewer for KubeTokenReviewer {
    fn review<'a>(&'a self, token: &'a SecretString, audience: &'a str) -> BoxFuture<'a, Result<Review, ReviewError>> {
        Box::pin(async move {
            let question = TokenReview {
                metadata: ObjectMeta::default(),
                spec: TokenReviewSpec {
                    token: Some(token.expose().to_owned()),
                    audiences: Some(vec![audience.to_owned()]),
                },
                status: None,
            };
            let answer = self.0.create(&PostParams::default(), &question).await;
            let status = answer.map_err(|error| ReviewError(error.into()))?.status;
            Ok(read(status.unwrap_or_default()))
        })
    }
}

fn read(status: TokenReviewStatus) -> Review {
    let user = status.user.unwrap_or_default();
    Review {
        authenticated: status.authenticated.unwrap_or(false),
        audiences: status.audiences.unwrap_or_default(),
        caller: Caller {
            username: user.username.unwrap_or_default(),
            uid: user.uid,
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        },
    }
}

/// The right to publish events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRight {
    /// In this namespace.
    pub namespace: String,
    /// Of this type; of all types if none.
    pub event_type: Option<String>,
}

/// Who knows rights.
pub trait Authorizer: Send + Sync {
    /// Whether the caller has the right.
    fn may_publish<'a>(
        &'a self,
        caller: &'a Caller,
        right: &'a PublishRight,
    ) -> BoxFuture<'a, Result<bool, ReviewError>>;
}

/// Asks the API server.
#[derive(Clone)]
pub struct KubeAuthorizer(Api<SubjectAccessReview>);

impl KubeAuthorizer {
    /// Asks this API server.
    pub fn new(client: Client) -> Self {
        Self(Api::all(client))
    }
}

impl Authorizer for KubeAuthorizer {
    fn may_publish<'a>(
        &'a self,
        caller: &'a Caller,
        right: &'a PublishRight,
    ) -> BoxFuture<'a, Result<bool, ReviewError>> {
        Box::pin(async move {
            let question = SubjectAccessReview { spec: question(caller, right), ..SubjectAccessReview::default() };
            let answer = self.0.create(&PostParams::default(), &question).await;
            let status = answer.map_err(|error| ReviewError(error.into()))?.status;
            // An evaluation error beside a no is a no: a binding to a role that is
            // gone makes one.
            Ok(status.is_some_and(|status| status.allowed))
        })
    }
}

fn question(caller: &Caller, right: &PublishRight) -> SubjectAccessReviewSpec {
    let Caller { username, uid, groups, extra } = caller.clone();
    let PublishRight { namespace, event_type } = right.clone();
    SubjectAccessReviewSpec {
        user: Some(username),
        uid,
        groups: Some(groups),
        extra: Some(extra),
        resource_attributes: Some(ResourceAttributes {
            namespace: Some(namespace),
            verb: Some("create".to_owned()),
            group: Some(GROUP.to_owned()),
            resource: Some("eventtypes".to_owned()),
            subresource: Some("events".to_owned()),
            name: event_type,
            ..ResourceAttributes::default()
        }),
        non_resource_attributes: None,
    }
}
