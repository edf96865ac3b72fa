//! `Webhook`: an endpoint that wants events.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    duration::Gep2257Duration,
    schema,
    secret_ref::{SecretKeyRef, SecretNameRef},
    webhook_delivery::{DeadLetterPolicy, DeliveryPolicy, DeliveryStatus},
};

/// A Webhook describes an HTTP endpoint that wants events: where it is, how it
/// proves that it wants them, how requests are signed and retried.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "posthorn.dev",
    version = "v1alpha1",
    kind = "Webhook",
    namespaced,
    status = "WebhookStatus",
    shortname = "wh",
    category = "posthorn",
    derive = "PartialEq",
    doc = "A Webhook describes an HTTP endpoint that wants events: where it is, how it proves that it wants them, how requests are signed and retried.",
    selectable = ".spec.dialect",
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", description = "Scheme and host of the endpoint"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.verification.state", description = "Whether the endpoint proved that it wants events"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Pending", type_ = "integer", json_path = ".status.delivery.pending", description = "Deliveries that are owed"),
    printcolumn(name = "Dead", type_ = "integer", json_path = ".status.delivery.deadLetters", description = "Deliveries that were given up"),
    printcolumn(name = "Last", type_ = "date", json_path = ".status.delivery.lastTime", description = "When the last attempt was"),
    printcolumn(name = "Code", type_ = "integer", priority = "1", json_path = ".status.delivery.lastStatusCode", description = "Status code of the last answer"),
    printcolumn(name = "Healthy", type_ = "string", priority = "1", json_path = ".status.conditions[?(@.type==\"Healthy\")].status"),
    printcolumn(name = "Reason", type_ = "string", priority = "1", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "URL", type_ = "string", priority = "1", json_path = ".spec.url"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must be at most 63 characters: it becomes a label value and part of the name of the Secret <name>-signing")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.url), has(self.urlFrom), has(self.serviceRef)].filter(x, x).size() == 1").message("set exactly one of url, urlFrom and serviceRef: they say where the endpoint is"),
    validation = Rule::new("!has(self.signing) || !has(self.signing.none) || !self.signing.none || (has(self.dialect) && self.dialect in ['Analytics', 'Impira'])").message("signing.none is only for dialects whose secret is optional (Analytics, Impira): remove signing.none or change dialect").field_path(".signing.none"),
    validation = Rule::new("!has(self.verification) || !has(self.verification.method) || self.verification.method != 'SignedChallenge' || !has(self.signing) || !has(self.signing.none) || !self.signing.none").message("SignedChallenge needs a secret: remove signing.none or choose another verification.method").field_path(".verification.method"),
    validation = Rule::new("!has(self.verification) || !has(self.verification.httpMethod) || self.verification.httpMethod != 'GET' || (has(self.dialect) && self.dialect == 'Improvado' && (!has(self.verification.method) || self.verification.method == 'Challenge'))").message("httpMethod GET is only for the Challenge of the Improvado dialect: use POST").field_path(".verification.httpMethod"),
    validation = Rule::new("!has(self.tls) || !has(self.url) || !self.url.startsWith('http://')").message("tls needs an https url: change url or remove tls").field_path(".tls"),
    validation = Rule::new("!has(self.headers) || !has(self.headersFrom) || !self.headers.exists(h, self.headersFrom.exists(f, f.name.lowerAscii() == h.name.lowerAscii()))").message("a header may be set by headers or by headersFrom, not by both").field_path(".headersFrom")
)]
pub struct WebhookSpec {
    /// The endpoint: an absolute https URL (http only where the DeliveryPool
    /// allows it), without user name, password and fragment. Anyone who may
    /// read the Webhook sees it; put a URL that is itself a secret into
    /// `urlFrom`. Set exactly one of `url`, `urlFrom` and `serviceRef`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(
        validation = Rule::new("isURL(self)").message("url must be an absolute URL such as https://hooks.example.com/posthorn"),
        validation = Rule::new("self.matches('^[hH][tT][tT][pP][sS]?://')").message("url must begin with https:// (or http:// where the DeliveryPool allows it)"),
        validation = Rule::new("!self.matches('^[a-zA-Z]+://[^/?#]*@')").message("url must not contain a user name or password: send credentials with headersFrom"),
        validation = Rule::new("!self.contains('#')").message("url must not contain a fragment (#…): it is never sent"),
        validation = Rule::new("!self.matches('[^!-~]') && !self.contains('\\\\')").message("url must consist of printable ASCII without spaces and backslashes: percent-encode other characters in the path, write the host in punycode")
    )]
    pub url: Option<String>,
    /// The endpoint's URL from a Secret, for URLs that are secrets themselves
    /// (Zapier, Make, Slack). Set exactly one of `url`, `urlFrom` and `serviceRef`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_from: Option<SecretKeyRef>,
    /// A Service of this namespace whose Pods are the endpoint. The DeliveryPool
    /// must allow this namespace in `egress.allow`. Set exactly one of `url`,
    /// `urlFrom` and `serviceRef`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_ref: Option<ServiceRef>,
    /// What the receiver speaks: headers, shape of the payload, signature and
    /// handshake. Default: StandardWebhooks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialect: Option<Dialect>,
    /// The key that signs requests. Without `signing.secretRef` the controller
    /// makes the Secret `<name>-signing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<Signing>,
    /// How the endpoint proves that it wants events. The default follows from
    /// the dialect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
    /// Time-outs, retries and limits of deliveries to this endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<DeliveryPolicy>,
    /// Headers that every request to this endpoint carries. Values are readable
    /// by everyone who may read the Webhook; use `headersFrom` for credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub headers: Vec<Header>,
    /// Headers whose values come from Secrets of this namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub headers_from: Vec<HeaderFrom>,
    /// TLS settings of connections to this endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// How many DeadLetter cards are kept for this Webhook, and how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetterPolicy>,
    /// Hold everything: no verification, no delivery, until it is false again.
    /// What is owed meanwhile stays owed. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
}

/// A Service of the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Name of the Service. It must have a selector: only addresses of Pods of
    /// this namespace are used, so ExternalName and selector-less Services are
    /// refused (CVE-2021-25740).
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("name must be the name of a Service of this namespace"))]
    pub name: String,
    /// Number of a port of the Service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Path and query, beginning with a slash. Default: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(
        validation = Rule::new("self.startsWith('/')").message("path must begin with a slash"),
        validation = Rule::new("!self.contains('#') && !self.matches('[^!-~]') && !self.contains('\\\\')").message("path must consist of printable ASCII without spaces, backslashes and '#': percent-encode other characters")
    )]
    pub path: Option<String>,
    /// `http` or `https`. Default: `http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
}

/// The scheme of a URL.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

/// What a family of receivers expects: headers, payload, signature, handshake.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Standard Webhooks 1.0.0.
    StandardWebhooks,
    /// CloudEvents 1.0 over HTTP.
    CloudEvents,
    /// Improvado's webhooks.
    Improvado,
    /// The Analytics platform's webhooks.
    Analytics,
    /// Impira's webhooks.
    Impira,
}

/// The keys that sign requests.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.none) || !self.none || (!has(self.secretRef) && !has(self.previousSecretRef))").message("none cannot be combined with secretRef or previousSecretRef"),
    validation = Rule::new("!has(self.previousSecretRef) || has(self.secretRef)").message("previousSecretRef needs secretRef: name the current key as well")
)]
pub struct Signing {
    /// The current key: a Secret of type Opaque or posthorn.dev/* in this
    /// namespace. For Standard Webhooks a value of the form `whsec_<base64>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyRef>,
    /// The key before the current one. While it is named, requests are signed
    /// with both, so that receivers can change over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_secret_ref: Option<SecretKeyRef>,
    /// Send unsigned requests. Only for dialects whose secret is optional
    /// (Analytics, Impira).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub none: Option<bool>,
}

/// How an endpoint proves that it wants events.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// The handshake. Default: Challenge for StandardWebhooks and Improvado,
    /// CloudEvents for CloudEvents, None for Analytics and Impira. The
    /// DeliveryPool may restrict the choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<VerificationMethod>,
    /// HTTP method of the challenge. GET only for the Improvado dialect.
    /// Default: POST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_method: Option<ChallengeHttpMethod>,
    /// Time between two checks of a verified endpoint, 1m to 720h. Default: 24h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('720h')").message("interval must be from 1m to 720h"))]
    pub interval: Option<Gep2257Duration>,
    /// Time that one check may take in all, 1s to 30s. Default: 15s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('30s')").message("timeout must be from 1s to 30s"))]
    pub timeout: Option<Gep2257Duration>,
}

/// The handshakes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VerificationMethod {
    /// A random challenge that the answer must contain.
    Challenge,
    /// A challenge, and the answer must prove knowledge of the key.
    SignedChallenge,
    /// The OPTIONS handshake of the CloudEvents HTTP WebHook specification.
    CloudEvents,
    /// No handshake: verified at once, reason NotRequired.
    None,
}

/// HTTP method of a challenge.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "UPPERCASE")]
pub enum ChallengeHttpMethod {
    /// POST with the challenge in header and body.
    Post,
    /// GET with the challenge in a header.
    Get,
}

/// A literal header.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Name of the header. Headers that Posthorn or HTTP itself sets are refused.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[-A-Za-z0-9!#$%&*+.^_`|~]+$')").message("name must be an HTTP header name: letters, digits and -!#$%&*+.^_`|~"),
        validation = Rule::new("!(self.lowerAscii() in ['host', 'content-length', 'content-type', 'content-encoding', 'transfer-encoding', 'connection', 'te', 'trailer', 'upgrade', 'keep-alive', 'expect', 'forwarded', 'cookie', 'metadata-flavor']) && !self.lowerAscii().matches('^(proxy-|x-forwarded-|webhook-|ce-|svix-|x-amz-|x-goog-|x-aws-ec2-metadata-token|x-improvado-|x-webhook-signature|impira-signature)')").message("this header is set by HTTP, by Posthorn or is reserved for cloud metadata services: choose another name")
    )]
    pub name: String,
    /// Value of the header: printable ASCII.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = Rule::new("!self.matches('[^ -~]') && self == self.trim()").message("value must be printable ASCII without leading or trailing spaces and without line breaks"))]
    pub value: String,
}

/// A header whose value is in a Secret.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct HeaderFrom {
    /// Name of the header. Headers that Posthorn or HTTP itself sets are refused.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[-A-Za-z0-9!#$%&*+.^_`|~]+$')").message("name must be an HTTP header name: letters, digits and -!#$%&*+.^_`|~"),
        validation = Rule::new("!(self.lowerAscii() in ['host', 'content-length', 'content-type', 'content-encoding', 'transfer-encoding', 'connection', 'te', 'trailer', 'upgrade', 'keep-alive', 'expect', 'forwarded', 'cookie', 'metadata-flavor']) && !self.lowerAscii().matches('^(proxy-|x-forwarded-|webhook-|ce-|svix-|x-amz-|x-goog-|x-aws-ec2-metadata-token|x-improvado-|x-webhook-signature|impira-signature)')").message("this header is set by HTTP, by Posthorn or is reserved for cloud metadata services: choose another name")
    )]
    pub name: String,
    /// The Secret (type Opaque or posthorn.dev/*) and key that hold the value.
    pub secret_ref: SecretKeyRef,
}

/// TLS settings of connections to an endpoint.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// PEM certificates of the authorities that may have signed the endpoint's
    /// certificate, instead of the public ones. A Secret of type Opaque.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<SecretKeyRef>,
    /// The client certificate to present: a Secret of type kubernetes.io/tls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_ref: Option<SecretNameRef>,
    /// Lowest version of TLS. Default: TLS1.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_version: Option<TlsVersion>,
}

/// Versions of TLS.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[serde(rename = "TLS1.2")]
    Tls12,
    /// TLS 1.3 (RFC 8446).
    #[serde(rename = "TLS1.3")]
    Tls13,
}

/// What the controller knows about a Webhook. Written by the controller alone.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct WebhookStatus {
    /// The generation of the spec that this status speaks of; -1 until the
    /// controller has seen the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Verified, Programmed, Healthy, DeadLetterOverflow; Reconciling and
    /// Stalled as kstatus reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Scheme and host of the endpoint, without path and query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 320))]
    pub endpoint: Option<String>,
    /// Where the verification stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationStatus>,
    /// What became of the events for this Webhook; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<DeliveryStatus>,
    /// The Secret that holds the signing key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub secret_name: Option<String>,
    /// The keys that sign requests, current first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub keys: Vec<KeyStatus>,
}

/// Where the verification of an endpoint stands.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct VerificationStatus {
    /// The state.
    pub state: VerificationState,
    /// Binds the verification to this Webhook, its endpoint and method, and to
    /// `verifiedTime` and `validUntil`; only Posthorn can make it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub fingerprint: Option<String>,
    /// When the endpoint was first verified without interruption since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub verified_time: Option<Time>,
    /// Until when the verification holds if no check succeeds meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub valid_until: Option<Time>,
    /// When the endpoint is asked next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub next_time: Option<Time>,
    /// When the present run of failed checks began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub failing_since: Option<Time>,
    /// Checks in a row that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub attempts: Option<i32>,
    /// Why the last check failed, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reason: Option<String>,
    /// What happened, and what to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// The value of the annotation posthorn.dev/verify-requested-at that was
    /// acted upon last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub last_requested: Option<String>,
    /// The generation of the spec that was checked last. Another one is checked
    /// at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub checked_generation: Option<i64>,
}

/// The states of a verification.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum VerificationState {
    /// Not asked yet: created, or the endpoint or the method changed.
    #[default]
    Unverified,
    /// Being asked; no right answer yet.
    Pending,
    /// The endpoint wants events.
    Verified,
    /// No right answer for 15 minutes, or three failed checks in a row.
    Failed,
    /// The endpoint answered 410.
    Gone,
    /// No check succeeded until `validUntil`.
    Expired,
}

/// One signing key.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct KeyStatus {
    /// Identifies the key without revealing it: a MAC under a key that only
    /// Posthorn holds.
    #[schemars(length(max = 64))]
    pub id: String,
    /// Current or Previous.
    pub role: KeyRole,
}

/// The role of a signing key.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyRole {
    /// Signs first.
    Current,
    /// Signs second while receivers change over.
    Previous,
}
