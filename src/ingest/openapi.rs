//! The description of the API in OpenAPI 3.1, made from the types that it
//! returns and the limits that it holds.
//!
//! Its schemas are JSON Schema 2020-12, which is what schemars writes for the
//! CRDs already; a crate for OpenAPI would be a second way to say the same.

use std::sync::LazyLock;

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    answer::{Receipt, ReceivedEvent},
    parse::{
        BATCH_EVENTS_MAX, CONTENT_TYPE_BYTES_MAX, DATA_SCHEMA_BYTES_MAX, EXTENSION_NAME_BYTES_MAX,
        EXTENSION_VALUE_BYTES_MAX, ID_BYTES_MAX, KEY_BYTES_MAX, SUBJECT_BYTES_MAX,
    },
    server::{EVENTS_PATH, OPENAPI_PATH},
};
use crate::{
    api::subscription_rules::{EVENT_BYTES_MAX as TYPE_BYTES_MAX, SOURCE_BYTES_MAX},
    runtime::problem::{FieldError, PROBLEM_CONTENT_TYPE},
};

/// An event in plain JSON.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used: the parser keeps bytes instead of values")]
struct PlainEvent {
    /// What happened, such as order.paid: what Subscriptions match.
    #[schemars(length(min = 1, max = TYPE_BYTES_MAX), regex(pattern = TYPE_PATTERN))]
    r#type: String,
    /// The payload: any JSON value. It is delivered byte for byte.
    data: Value,
    /// The publisher's id. The same id and source again is a duplicate; with
    /// other content it is a conflict.
    #[schemars(length(min = 1, max = ID_BYTES_MAX), regex(pattern = TEXT_PATTERN))]
    id: Option<String>,
    /// When it happened, in RFC 3339.
    #[schemars(regex(pattern = TIME_PATTERN))]
    timestamp: Option<String>,
    /// Where it happened. Default: /namespaces/ and the name of the namespace.
    #[schemars(length(min = 1, max = SOURCE_BYTES_MAX), regex(pattern = WORD_PATTERN))]
    source: Option<String>,
    /// Orders deliveries: those with the same key go one after the other.
    #[schemars(length(min = 1, max = KEY_BYTES_MAX), regex(pattern = TEXT_PATTERN))]
    key: Option<String>,
}

/// A CloudEvent 1.0 in structured mode. More members are extension attributes:
/// strings, booleans, or integers of 32 bits. Attributes that are null are not there.
#[derive(JsonSchema)]
#[schemars(extend(
    "propertyNames" = json!({ "pattern": "^([a-z0-9]+|data_base64)$", "maxLength": EXTENSION_NAME_BYTES_MAX }),
    "additionalProperties" = json!({
        "type": ["string", "boolean", "integer", "null"], "pattern": TEXT_PATTERN, "minLength": 1,
        "maxLength": EXTENSION_VALUE_BYTES_MAX, "minimum": i32::MIN, "maximum": i32::MAX,
    }),
    "not" = json!({ "required": ["data", "data_base64"], "properties": { "data_base64": { "type": "string" } } })
))]
#[expect(dead_code, reason = "only its schema is used")]
struct CloudEvent {
    /// Version of CloudEvents.
    #[schemars(extend("const" = "1.0"))]
    specversion: String,
    /// The publisher's id; unique together with the source.
    #[schemars(length(min = 1, max = ID_BYTES_MAX), regex(pattern = TEXT_PATTERN))]
    id: String,
    /// Where it happened: a URI reference.
    #[schemars(length(min = 1, max = SOURCE_BYTES_MAX), regex(pattern = WORD_PATTERN))]
    source: String,
    /// What happened: what Subscriptions match.
    #[schemars(length(min = 1, max = TYPE_BYTES_MAX), regex(pattern = TYPE_PATTERN))]
    r#type: String,
    /// What in the source it is about.
    #[schemars(length(min = 1, max = SUBJECT_BYTES_MAX), regex(pattern = TEXT_PATTERN))]
    subject: Option<String>,
    /// When it happened, in RFC 3339.
    #[schemars(regex(pattern = TIME_PATTERN))]
    time: Option<String>,
    /// Media type of the data. Default: application/json.
    #[schemars(length(min = 3, max = CONTENT_TYPE_BYTES_MAX), regex(pattern = MEDIA_TYPE_PATTERN))]
    datacontenttype: Option<String>,
    /// Schema of the data: an absolute URI.
    #[schemars(length(min = 1, max = DATA_SCHEMA_BYTES_MAX), url)]
    dataschema: Option<String>,
    /// The data; a string unless it is JSON.
    data: Option<Value>,
    /// The data in base64, instead of data.
    #[schemars(regex(pattern = BASE64_PATTERN))]
    data_base64: Option<String>,
    /// Orders deliveries, as the key of plain JSON.
    #[schemars(length(min = 1, max = KEY_BYTES_MAX), regex(pattern = TEXT_PATTERN))]
    partitionkey: Option<String>,
}

/// A problem as RFC 9457 defines it.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used: runtime::problem writes it")]
struct ProblemDetails {
    /// Tells kinds of problems apart; about:blank if the status says all.
    r#type: String,
    /// The kind in words.
    title: String,
    /// The status of the answer.
    #[schemars(range(min = 400, max = 599))]
    status: u16,
    /// What happened, and what to do.
    detail: String,
    /// Which fields are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// With a conflict: what became of each event.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    events: Vec<ReceivedEvent>,
}

/// Types of events, but those that begin with `posthorn.`.
const TYPE_PATTERN: &str = r"^(?!posthorn\.)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$";
/// Texts without control characters.
const TEXT_PATTERN: &str = r"^[ -~\u00a0-\ufdcf\ufdf0-\ufffd]+$";
/// Texts without spaces either.
const WORD_PATTERN: &str = r"^[!-~]+$";
/// RFC 3339; times that no calendar has are refused as well.
const TIME_PATTERN: &str = r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$";

/// Media types.
const MEDIA_TYPE_PATTERN: &str = r"^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(; ?[A-Za-z0-9-]+=[A-Za-z0-9._-]+)*$";
/// Base64 of the standard alphabet, with padding.
const BASE64_PATTERN: &str =
    r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=|[A-Za-z0-9+/][AQgw]==)$";

/// What each status means; all but the first are problems.
const ANSWERS: [(&str, &str); 14] = [
    ("202", "The events are on stable storage; one entry an event, in the order of the request."),
    ("400", "An event cannot be accepted; nothing was. The list errors says what is wrong where."),
    ("401", "There is no token, or none that is valid for the audience posthorn."),
    ("403", "The publisher may not publish these events in this namespace."),
    ("404", "There is no such namespace."),
    ("405", "The path has no such method."),
    ("408", "The body did not arrive in time; nothing was accepted."),
    ("409", "An id was used before for an event with other content; the list events says what became of each."),
    ("413", "An event, the body or the batch is too large; nothing was accepted."),
    ("415", "The body is of a kind that is not taken."),
    ("421", "Another DeliveryPool is responsible for the namespace; the detail names its Service."),
    ("429", "The namespace, or the store, has too much to do; come back after Retry-After."),
    ("503", "The request cannot be judged or stored now; come back after Retry-After."),
    ("507", "There is no room for more events."),
];

/// Answers with the description.
pub(super) async fn serve() -> Response {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(document().to_string()));
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], DOCUMENT.clone()).into_response()
}

/// The description.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut read = settings.clone().for_deserialize().into_generator();
    let mut written = settings.for_serialize().into_generator();
    let (request, responses) = (request_body(&mut read), responses(&mut written));
    let mut schemas = read.take_definitions(true);
    schemas.extend(written.take_definitions(true));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Posthorn ingest",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Hands events in. A 202 means that they are on stable storage.",
        },
        "paths": {
            EVENTS_PATH: { "post": {
                "operationId": "publishEvents",
                "summary": "Publish one event or several.",
                "security": [{ "serviceAccount": [] }],
                "parameters": [{
                    "name": "namespace", "in": "path", "required": true,
                    "description": "The namespace whose Subscriptions see the events.",
                    "schema": { "type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$" },
                }],
                "requestBody": request,
                "responses": responses,
            } },
            OPENAPI_PATH: { "get": {
                "operationId": "describe",
                "summary": "This description.",
                "responses": {
                    "200": { "description": "OpenAPI 3.1", "content": { "application/json": { "schema": { "type": "object" } } } },
                },
            } },
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": { "serviceAccount": {
                "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                "description": "A ServiceAccount token of the audience posthorn.",
            } },
        },
    })
}

fn request_body(generator: &mut SchemaGenerator) -> Value {
    let list = |item: &Schema| json!({ "type": "array", "items": item, "maxItems": BATCH_EVENTS_MAX });
    let plain = generator.subschema_for::<PlainEvent>();
    let cloud = generator.subschema_for::<CloudEvent>();
    json!({
        "required": true,
        "description": "A CloudEvent in binary mode (the headers ce-specversion, ce-id, ce-source and ce-type, and \
                        the data as the body) may have any other media type.",
        "content": {
            "application/json": { "schema": { "oneOf": [plain, list(&plain)] } },
            "application/cloudevents+json": { "schema": cloud },
            "application/cloudevents-batch+json": { "schema": list(&cloud) },
        },
    })
}

fn responses(generator: &mut SchemaGenerator) -> Value {
    let receipt = generator.subschema_for::<Receipt>();
    let problem = generator.subschema_for::<ProblemDetails>();
    let one = |(status, description): (&str, &str)| {
        let content = match status {
            "202" => json!({ "application/json": { "schema": receipt } }),
            _ => json!({ PROBLEM_CONTENT_TYPE: { "schema": problem } }),
        };
        let header = |name: &str, schema: &str| json!({ name: { "required": true, "schema": { "type": schema } } });
        let headers = match status {
            "401" => header("WWW-Authenticate", "string"),
            "429" | "503" => header("Retry-After", "integer"),
            _ => json!({}),
        };
        (status.to_owned(), json!({ "description": description, "content": content, "headers": headers }))
    };
    Value::Object(ANSWERS.into_iter().map(one).collect::<Map<_, _>>())
}
