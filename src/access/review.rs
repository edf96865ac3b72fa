//! The question to the API server.

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use crate::runtime::secret::SecretString;

/// What the API server says of a token.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Review {
    /// The token is valid.
    pub authenticated: bool,
    /// For these of the audiences that were asked for.
    pub audiences: Vec<String>,
    /// Whose it is.
    pub username: String,
}

/// The API server gave no verdict.
#[derive(Debug, thiserror::Error)]
#[error("the API server gave no verdict on a token; the pod's ServiceAccount needs create on tokenreviews")]
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
    Review {
        authenticated: status.authenticated.unwrap_or(false),
        audiences: status.audiences.unwrap_or_default(),
        username: status.user.and_then(|user| user.username).unwrap_or_default(),
    }
}
