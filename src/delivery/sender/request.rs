//! The request of an attempt: payload, signature and the tenant's headers. Pure.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header::CONTENT_TYPE};
use k8s_openapi::jiff::Timestamp;

use super::{failure::NotMade, prepared::Prepared};
use crate::{
    api::webhook::{Dialect, VerificationMethod},
    dialect::{
        Shape, Unrenderable, render, scheme,
        sign::{Message, sign},
    },
    egress::EgressRequest,
    event::Event,
    routing::index::WebhookEntry,
    verify::challenge::REQUEST_ORIGIN_HEADER,
};

/// Makes requests.
pub(super) struct Composer {
    /// The name under which this Posthorn introduces itself; none if it is no
    /// value of a header, which no name of a namespace is.
    origin: Option<HeaderValue>,
}

/// A request, and the signatures in it.
pub(super) struct Composed {
    pub(super) request: EgressRequest,
    pub(super) signatures: Vec<String>,
}

impl Composer {
    pub(super) fn new(origin: &str) -> Self {
        Self { origin: HeaderValue::try_from(origin).ok() }
    }

    /// The request for an event, as it is at this time.
    pub(super) fn compose(
        &self,
        webhook: &WebhookEntry,
        prepared: &Prepared,
        event: &Event,
        shape: Shape,
        at: Timestamp,
    ) -> Result<Composed, NotMade> {
        let payload = render(shape, event).map_err(NotMade::Unrenderable)?;
        let mut headers = HeaderMap::with_capacity(8 + prepared.headers.len() + payload.attributes.len());
        if let Some(content_type) = &payload.content_type {
            headers.insert(CONTENT_TYPE, value(content_type)?);
        }
        for (name, text) in &payload.attributes {
            headers.insert(name_of(name)?, value(text)?);
        }
        let is_cloud_events =
            webhook.dialect == Dialect::CloudEvents || webhook.method == VerificationMethod::CloudEvents;
        if is_cloud_events && let Some(origin) = &self.origin {
            headers.insert(name_of(REQUEST_ORIGIN_HEADER)?, origin.clone());
        }
        let id = event.id.to_string();
        let message = Message { id: &id, time: at, body: &payload.body };
        let mut signatures = Vec::new();
        for (name, text) in sign(webhook.dialect, &prepared.material.keys, &message) {
            let name = name_of(name)?;
            let mut header = value(&text)?;
            if is_signature(webhook.dialect, &name) {
                header.set_sensitive(true);
                signatures.push(text);
            }
            headers.insert(name, header);
        }
        headers.extend(prepared.headers.clone());
        Ok(Composed { request: EgressRequest { method: Method::POST, headers, body: payload.body }, signatures })
    }
}

/// Whether a header of a dialect is a signature.
pub(super) fn is_signature(dialect: Dialect, name: &HeaderName) -> bool {
    let is = |header: &str| name.as_str().eq_ignore_ascii_case(header);
    scheme::of(dialect).is_some_and(|scheme| is(scheme.header) || scheme.previous_header.is_some_and(is))
}

/// The signatures in a header: `v1,<one> v1,<other>` or `sha256=<one>`.
pub(super) fn signatures_in(header: &str) -> impl Iterator<Item = &str> {
    header.split([' ', ',']).map(|piece| piece.strip_prefix("sha256=").unwrap_or(piece))
}

fn name_of(name: &str) -> Result<HeaderName, NotMade> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| NotMade::Unrenderable(Unrenderable::Attribute))
}

fn value(text: &str) -> Result<HeaderValue, NotMade> {
    HeaderValue::try_from(text).map_err(|_| NotMade::Unrenderable(Unrenderable::Attribute))
}
