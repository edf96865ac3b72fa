//! A double of the API server: a function from requests to answers.

use http::{Request, Response};
use kube::{Client, client::Body};
use serde_json::Value;

/// What the double says.
pub(crate) enum Answer {
    /// A status code and an object.
    Json(u16, Value),
    /// Nothing, for ever: a watch without news, or a server that hangs.
    Never,
}

/// A client whose requests `answer` answers; it gets method, path with query, and body.
pub(crate) fn client(mut answer: impl FnMut(&str, &str, Value) -> Answer + Send + 'static) -> Client {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    tokio::spawn(async move {
        let mut unanswered = Vec::new();
        while let Some((request, send)) = handle.next_request().await {
            let (head, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            match answer(head.method.as_str(), &head.uri.to_string(), body) {
                Answer::Json(status, value) => {
                    let body = Body::from(serde_json::to_vec(&value).unwrap());
                    send.send_response(Response::builder().status(status).body(body).unwrap());
                }
                Answer::Never => unanswered.push(send),
            }
        }
    });
    Client::new(service, "default")
}
