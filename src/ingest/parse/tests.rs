//! What parsing takes and refuses: tables, and properties of all input.

use http::{HeaderName, HeaderValue};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::runtime::problem::FieldError;

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    // Not insert: a header may be there twice.
    let mut map = HeaderMap::new();
    pairs.iter().map(pair).for_each(|(name, value)| {
        map.append(name, value);
    });
    map
}

fn parse_all(pairs: &[(&str, &str)], body: impl Into<Bytes>) -> Result<Parsed, Rejection> {
    let headers = headers(pairs);
    parse(Format::of(&headers)?, &headers, "shop", &body.into())
}

fn as_type(content_type: &str, body: impl Into<Bytes>) -> Result<Parsed, Rejection> {
    parse_all(&[("content-type", content_type)], body)
}

fn one(parsed: Result<Parsed, Rejection>) -> ParsedEvent {
    let mut events = parsed.unwrap().events;
    assert_eq!(events.len(), 1);
    events.remove(0)
}

/// The places that are wrong, and what is said of them.
fn places(parsed: Result<Parsed, Rejection>) -> Vec<(String, String)> {
    let Err(Rejection::Invalid(errors)) = parsed else { panic!("{parsed:?}") };
    let place = |error: FieldError| (error.pointer.or(error.header).unwrap(), error.detail);
    errors.into_iter().map(place).collect()
}

fn check_place(parsed: Result<Parsed, Rejection>, place: &str, detail: &str) {
    let places = places(parsed);
    assert_eq!(places.len(), 1, "{places:?}");
    assert_eq!(places[0].0, place, "{places:?}");
    assert!(places[0].1.contains(detail), "{places:?}");
}

fn plain() -> Value {
    json!({ "type": "order.paid", "data": { "n": 1 } })
}

fn cloud() -> Value {
    json!({ "specversion": "1.0", "id": "1", "source": "/s", "type": "order.paid" })
}

fn with(mut event: Value, member: &str, value: Value) -> String {
    event[member] = value;
    event.to_string()
}

fn without(mut event: Value, member: &str) -> String {
    event.as_object_mut().unwrap().remove(member);
    event.to_string()
}

const PLAIN: &str = "application/json";
const CLOUD: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";
const BINARY: [(&str, &str); 4] =
    [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "order.paid")];

fn binary(more: &[(&str, &str)], body: &'static str) -> Result<Parsed, Rejection> {
    parse_all(&[&BINARY[..], more].concat(), body)
}

#[test]
fn the_format_is_told_by_content_type_and_headers() {
    let check = |pairs: &[(&str, &str)], expected: Option<Format>| {
        assert_eq!(Format::of(&headers(pairs)).ok(), expected, "{pairs:?}");
    };
    check(&[("content-type", "application/json")], Some(Format::Plain));
    check(&[("content-type", "APPLICATION/JSON; charset=UTF-8")], Some(Format::Plain));
    check(&[("content-type", "application/cloudevents+json")], Some(Format::Structured));
    check(&[("content-type", "Application/CloudEvents-Batch+JSON")], Some(Format::StructuredBatch));
    check(&[("content-type", "application/cloudevents+json"), ("ce-id", "1")], Some(Format::Structured));
    check(&[("content-type", "application/json"), ("ce-id", "1")], Some(Format::Binary));
    check(&[("content-type", "text/plain; charset=latin1"), ("ce-type", "a")], Some(Format::Binary));
    check(&[("ce-foo", "1")], Some(Format::Binary));
    check(&[("content-type", "application/json"), ("content-encoding", "Identity")], Some(Format::Plain));
    for bad in ["application/cloudevents", "application/cloudevents+avro", "application/cloudevents-batch+xml"] {
        check(&[("content-type", bad), ("ce-id", "1")], None);
    }
    for bad in ["text/plain", "application/xml", "application/json; charset=utf-16", "json", ""] {
        check(&[("content-type", bad)], None);
    }
    check(&[], None);
    check(&[("content-type", "application/json"), ("content-encoding", "gzip")], None);
}

#[test]
fn plain_json_is_taken_as_it_is_and_data_keeps_its_bytes() {
    let event = one(as_type(PLAIN, r#" {"data": { "b":1.0,  "a":1e2, "a":"\u00e9" } , "type":"order.paid"} "#));
    assert_eq!(&event.data[..], br#"{ "b":1.0,  "a":1e2, "a":"\u00e9" }"#);
    let head = &event.head;
    assert_eq!((&*head.event_type, &*head.source), ("order.paid", "/namespaces/shop"));
    assert_eq!((head.content_type.as_deref(), &head.given_id, &head.key), (Some("application/json"), &None, &None));

    let full = json!({ "type": "a", "data": null, "id": "é", "timestamp": "2026-11-23T12:00:00.5+01:00",
        "source": "/x", "key": "k" });
    let event = one(as_type(PLAIN, full.to_string()));
    assert_eq!(&event.data[..], b"null");
    assert_eq!((event.head.given_id.as_deref(), event.head.key.as_deref()), (Some("é"), Some("k")));
    assert_eq!(event.head.time, "2026-11-23T11:00:00.5Z".parse().ok());
    assert_eq!(&*event.head.source, "/x");
}

#[test]
fn an_array_of_plain_json_is_a_batch_that_keeps_its_order() {
    let parsed = as_type(PLAIN, r#"[{"type":"a","data":1},{"type":"b","data":2}]"#).unwrap();
    let seen: Vec<_> = parsed.events.iter().map(|event| (&*event.head.event_type, &event.data[..])).collect();
    assert_eq!(seen, [("a", &b"1"[..]), ("b", b"2")]);
    assert_eq!(parsed.places, Places::Array);
    assert_eq!(as_type(PLAIN, " [ ] ").unwrap().events, []);
}

#[test]
fn what_is_wrong_in_plain_json_is_told_with_its_place() {
    let check = |body: String, place: &str, detail: &str| check_place(as_type(PLAIN, body), place, detail);
    check(without(plain(), "type"), "/type", "is missing");
    check(without(plain(), "data"), "/data", "is missing");
    check(with(plain(), "type", json!(null)), "/type", "must be a string");
    check(with(plain(), "id", json!(1)), "/id", "must be a string");
    check(with(plain(), "id", json!("")), "/id", "must not be empty");
    check(with(plain(), "key", json!("a\nb")), "/key", "control characters");
    check(with(plain(), "source", json!("a b")), "/source", "without spaces");
    check(with(plain(), "timestamp", json!(1)), "/timestamp", "must be a string");
    check(with(plain(), "subject", json!("x")), "/subject", "is no member of an event");
    check(with(plain(), "a/b~c", json!("x")), "/a~1b~0c", "is no member of an event");
    let long = "ä".repeat(100_000);
    check(with(plain(), &long, json!("x")), &format!("/{}", "ä".repeat(64)), "is no member of an event");
    check(r#"{"type":"a","data":1,"data":2}"#.to_owned(), "/data", "twice");
    check(r#"{"type":"a","data":1,"type":"b"}"#.to_owned(), "/type", "twice");
    check(r#"{"type":"a","data":1,"id":"\ud800"}"#.to_owned(), "/id", "Unicode");
    check(r#"[{"type":"a","data":1},{"data":1}]"#.to_owned(), "/1/type", "is missing");
    check(r#"[{"type":"a","data":1},7]"#.to_owned(), "/1", "must be an object");
    for (body, detail) in [
        ("", "line 1"),
        ("{", "line 1"),
        ("{} {}", "line 1"),
        ("7", "must be an object"),
        ("null", "must be an object"),
        ("[1", "line 1"),
        (r#"{"type":"hunter2","data":tru}"#, "column 29"),
    ] {
        check_place(as_type(PLAIN, body), "", detail);
    }
    check_place(as_type(PLAIN, &b"{\"type\":\"a\",\"data\":\"\xff\"}"[..]), "", "UTF-8");
}

#[test]
fn types_are_what_subscriptions_can_name_and_not_our_own() {
    let read = |name: &str| as_type(PLAIN, with(plain(), "type", json!(name)));
    for good in ["a", "order.paid", "com.github.pull_request.opened", "A-b_c.9", "posthornx.a", &"x".repeat(253)] {
        assert_eq!(&*one(read(good)).head.event_type, good);
    }
    for bad in ["", ".", "a.", "a..b", "*", "a.*", "a b", "a/b", "ä", &"x".repeat(254)] {
        check_place(read(bad), "/type", "must be words");
    }
    check_place(read("posthorn.test"), "/type", "Posthorn's own");
}

#[test]
fn times_are_rfc_3339_and_nothing_else() {
    let read = |time: &str| as_type(CLOUD, with(cloud(), "time", json!(time)));
    for good in ["2026-11-23T12:00:00Z", "2026-11-23t12:00:00.123456789z", "2026-11-23T12:00:00-23:59"] {
        assert!(one(read(good)).head.time.is_some(), "{good}");
    }
    for bad in [
        "",
        "now",
        "2026-11-23",
        "2026-11-23 12:00:00Z",
        "2026-11-23T12:00Z",
        "2026-11-23T12:00:00",
        "2026-02-30T12:00:00Z",
        "2026-11-23T12:00:00Z[UTC]",
        "2026-11-23T12:00:00.1234567891Z",
        "+12026-11-23T12:00:00Z",
    ] {
        check_place(read(bad), "/time", "must be a time such as");
    }
}

#[test]
fn a_structured_cloud_event_keeps_all_of_its_attributes() {
    let mut event = cloud();
    let more = json!({ "subject": "s", "time": "2026-11-23T12:00:00Z", "dataschema": "https://a.example/s",
        "datacontenttype": "application/vnd.x+json", "partitionkey": "k", "zeta": true, "alpha": -7, "none": null });
    event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let body = format!("{},\"data\":{{ \"a\" : 1 }}}}", event.to_string().trim_end_matches('}'));
    let ParsedEvent { head, data } = one(as_type(CLOUD, body));
    assert_eq!(&data[..], b"{ \"a\" : 1 }");
    let extension = |name: &str, value: &str| (name.into(), value.into());
    let expected = EventHead {
        event_type: "order.paid".into(),
        source: "/s".into(),
        given_id: Some("1".into()),
        subject: Some("s".into()),
        time: "2026-11-23T12:00:00Z".parse().ok(),
        content_type: Some("application/vnd.x+json".into()),
        data_schema: Some("https://a.example/s".into()),
        extensions: vec![extension("alpha", "-7"), extension("partitionkey", "k"), extension("zeta", "true")],
        key: Some("k".into()),
    };
    assert_eq!(head, expected);
}

#[test]
fn structured_data_is_json_or_text_or_base64() {
    let check = |more: Value, content_type: Option<&str>, data: &[u8]| {
        let mut event = cloud();
        event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let event = one(as_type(CLOUD, event.to_string()));
        assert_eq!((event.head.content_type.as_deref(), &event.data[..]), (content_type, data), "{more}");
    };
    check(json!({}), None, b"");
    check(json!({ "datacontenttype": "text/plain" }), None, b"");
    check(json!({ "data": "x" }), Some("application/json"), b"\"x\"");
    check(json!({ "data": null }), Some("application/json"), b"null");
    check(json!({ "data": "<a/>", "datacontenttype": "text/xml" }), Some("text/xml"), b"<a/>");
    check(json!({ "data_base64": "AP8=", "datacontenttype": "a/b" }), Some("a/b"), b"\0\xff");
    check(json!({ "data_base64": "e30=" }), Some("application/json"), b"{}");
    check(json!({ "data": 1, "data_base64": null }), Some("application/json"), b"1");
}

#[test]
fn what_is_wrong_in_a_structured_cloud_event_is_told_with_its_place() {
    let check = |body: String, place: &str, detail: &str| check_place(as_type(CLOUD, body), place, detail);
    for name in ["specversion", "id", "source", "type"] {
        check(without(cloud(), name), &format!("/{name}"), "is missing");
        check(with(cloud(), name, json!(null)), &format!("/{name}"), "is missing");
        check(with(cloud(), name, json!(7)), &format!("/{name}"), "must be a string");
    }
    check(with(cloud(), "specversion", json!("0.3")), "/specversion", "must be 1.0");
    check(with(cloud(), "partitionkey", json!(7)), "/partitionkey", "must be a string");
    check(with(cloud(), "subject", json!("")), "/subject", "must not be empty");
    check(with(cloud(), "dataschema", json!("a/b")), "/dataschema", "absolute URI");
    check(with(cloud(), "datacontenttype", json!("json")), "/datacontenttype", "media type");
    check(with(cloud(), "Upper", json!("x")), "/Upper", "lower-case");
    check(with(cloud(), "a-b", json!("x")), "/a-b", "lower-case");
    check(with(cloud(), "ext", json!({})), "/ext", "integer of 32 bits");
    check(with(cloud(), "ext", json!(1.5)), "/ext", "integer of 32 bits");
    check(with(cloud(), "ext", json!(2_147_483_648_u32)), "/ext", "integer of 32 bits");
    check(with(cloud(), "ext", json!("\u{fffe}")), "/ext", "control characters");
    check(with(cloud(), "partitionkey", json!("x".repeat(KEY_BYTES_MAX + 1))), "/partitionkey", "256");
    check(with(cloud(), "data_base64", json!("AP8")), "/data_base64", "with padding");
    check(with(cloud(), "data_base64", json!(1)), "/data_base64", "must be a string");
    check(with(cloud(), "data_base64", json!("AP8=")), "/data_base64", "name the type");
    let mut both = cloud();
    both["data"] = json!(1);
    check(with(both, "data_base64", json!("e30=")), "/data_base64", "beside data");
    let mut text = cloud();
    text["datacontenttype"] = json!("text/plain");
    check(with(text, "data", json!({})), "/data", "must be a string");
    let twice = |member: &str| format!("{},{member},{member}}}", cloud().to_string().trim_end_matches('}'));
    check(twice(r#""ext":"x""#), "/ext", "twice");
    check(twice(r#""subject":"x""#), "/subject", "twice");
    check(twice(r#""data":1"#), "/data", "twice");
    check_place(as_type(CLOUD, "[]"), "", "must be an object");
    check_place(as_type(BATCH, "{}"), "", "must be an array");
    check_place(as_type(BATCH, format!("[{},{}]", cloud(), without(cloud(), "id"))), "/1/id", "is missing");
    assert_eq!(as_type(BATCH, "[]").unwrap().events, []);
}

#[test]
fn a_binary_cloud_event_has_its_attributes_in_headers() {
    let more =
        [("content-type", "text/plain; charset=latin1"), ("ce-subject", "Euro%20%E2%82%AC"), ("ce-x", "\"a b\"")];
    let ParsedEvent { head, data } = one(binary(&more, "\u{0}x"));
    assert_eq!((&data[..], head.content_type.as_deref()), (&b"\0x"[..], Some("text/plain; charset=latin1")));
    assert_eq!((head.subject.as_deref(), &*head.extensions), (Some("Euro €"), &[("x".into(), "a b".into())][..]));
    assert_eq!((&*head.event_type, &*head.source, head.given_id.as_deref()), ("order.paid", "/s", Some("1")));

    let empty = one(binary(&[("content-type", "application/json")], ""));
    assert_eq!((empty.head.content_type, &empty.data[..]), (None, &b""[..]));
}

#[test]
fn what_is_wrong_in_a_binary_cloud_event_is_told_with_its_header() {
    for missing in BINARY {
        let pairs: Vec<_> = BINARY.into_iter().filter(|pair| *pair != missing).collect();
        check_place(parse_all(&pairs, ""), missing.0, "is missing");
    }
    let check = |more: &[(&str, &str)], body, place: &str, detail: &str| check_place(binary(more, body), place, detail);
    check(&[("ce-id", "2")], "", "ce-id", "twice");
    check(&[("ce-ext", "a"), ("ce-ext", "b")], "", "ce-ext", "twice");
    check(&[("ce-ext", "%C0%A0")], "", "ce-ext", "UTF-8");
    check(&[("ce-ext", "ä")], "", "ce-ext", "ASCII");
    check(&[("ce-ext", "%0d%0aevil: 1")], "", "ce-ext", "control characters");
    check(&[("ce-ext", "")], "", "ce-ext", "must not be empty");
    check(&[("ce-a_b", "x")], "", "ce-a_b", "lower-case");
    check(&[("ce-data", "x")], "", "ce-data", "no attribute may have");
    check(&[("ce-datacontenttype", "a/b")], "", "ce-datacontenttype", "content-type");
    check(&[("ce-time", "now")], "", "ce-time", "must be a time");
    check(&[("content-type", "application/json")], "{", "", "line 1");
    assert!(matches!(binary(&[], "x"), Err(Rejection::MediaType(_))));
    assert!(matches!(binary(&[("content-type", "x")], "x"), Err(Rejection::MediaType(_))));
}

#[test]
fn every_text_has_its_limit_and_is_taken_up_to_it() {
    for (member, bytes_max) in [
        ("id", ID_BYTES_MAX),
        ("source", 1_024),
        ("subject", SUBJECT_BYTES_MAX),
        ("ext", EXTENSION_VALUE_BYTES_MAX),
        ("partitionkey", KEY_BYTES_MAX),
    ] {
        one(as_type(CLOUD, with(cloud(), member, json!("x".repeat(bytes_max)))));
        let over = as_type(CLOUD, with(cloud(), member, json!("x".repeat(bytes_max + 1))));
        check_place(over, &format!("/{member}"), &format!("at most {bytes_max}"));
    }
    let schema = |bytes: usize| json!(format!("a:{}", "x".repeat(bytes - 2)));
    one(as_type(CLOUD, with(cloud(), "dataschema", schema(DATA_SCHEMA_BYTES_MAX))));
    check_place(
        as_type(CLOUD, with(cloud(), "dataschema", schema(DATA_SCHEMA_BYTES_MAX + 1))),
        "/dataschema",
        "at most",
    );
    let name = "x".repeat(EXTENSION_NAME_BYTES_MAX);
    one(as_type(CLOUD, with(cloud(), &name, json!("x"))));
    check_place(as_type(CLOUD, with(cloud(), &format!("{name}x"), json!("x"))), &format!("/{name}"), "1 to 64");
    let content_type = |bytes: usize| json!(format!("a/{}", "x".repeat(bytes - 2)));
    one(as_type(CLOUD, with(cloud(), "datacontenttype", content_type(CONTENT_TYPE_BYTES_MAX))));
    let over = as_type(CLOUD, with(cloud(), "datacontenttype", content_type(CONTENT_TYPE_BYTES_MAX + 1)));
    check_place(over, "/datacontenttype", "at most 256");

    let extended =
        |count: usize| (0..count).fold(cloud(), |event, i| with(event, &format!("e{i}"), json!("x")).parse().unwrap());
    one(as_type(CLOUD, extended(EXTENSIONS_MAX).to_string()));
    check_place(as_type(CLOUD, extended(EXTENSIONS_MAX + 1).to_string()), "/e9", "one extension attribute too many");
    check_place(as_type(CLOUD, extended(MEMBERS_MAX).to_string()), "", "at most 44");
}

#[test]
fn data_and_batches_are_taken_up_to_their_limits() {
    let data = |bytes: usize| json!("x".repeat(bytes - 2));
    for (content_type, event) in [(PLAIN, plain()), (CLOUD, cloud())] {
        let full = one(as_type(content_type, with(event.clone(), "data", data(EVENT_BYTES_MAX))));
        assert_eq!(full.data.len(), EVENT_BYTES_MAX);
        let over = as_type(content_type, with(event, "data", data(EVENT_BYTES_MAX + 1)));
        let Err(Rejection::TooLarge(error)) = over else { panic!("{over:?}") };
        assert_eq!(error.pointer.as_deref(), Some("/data"));
    }
    let batch = |count: usize| format!("[{}]", vec![plain().to_string(); count].join(","));
    assert_eq!(as_type(PLAIN, batch(BATCH_EVENTS_MAX)).unwrap().events.len(), BATCH_EVENTS_MAX);
    assert!(matches!(as_type(PLAIN, batch(BATCH_EVENTS_MAX + 1)), Err(Rejection::TooLarge(_))));

    let nested =
        |depth: usize| format!(r#"{{"type":"a","data":{}"[{{"{}}}"#, "[".repeat(depth - 1), "]".repeat(depth - 1));
    one(as_type(PLAIN, nested(JSON_DEPTH_MAX)));
    check_place(as_type(PLAIN, nested(JSON_DEPTH_MAX + 1)), "", "more than 64");
}

#[test]
fn many_errors_are_told_at_once_but_not_without_end() {
    let body = format!("[{}]", vec!["{}"; 100].join(","));
    assert_eq!(places(as_type(PLAIN, body)).len(), ERRORS_MAX);
    let all = places(as_type(CLOUD, "{}"));
    let names: Vec<_> = all.iter().map(|(place, _)| place.as_str()).collect();
    assert_eq!(names, ["/specversion", "/id", "/source", "/type"]);
}

#[test]
fn a_small_event_does_not_keep_its_batch_in_memory() {
    let body = Bytes::from(format!("[{0},{0}]", plain()));
    let parsed = as_type(PLAIN, body.clone()).unwrap();
    let inside = |data: &Bytes| body.as_ptr_range().contains(&data.as_ptr());
    assert!(!parsed.events.iter().any(|event| inside(&event.data)));
    let large = Bytes::from(with(plain(), "data", json!("x".repeat(COPY_BYTES_MAX))));
    let event = one(as_type(PLAIN, large.clone()));
    assert!(large.as_ptr_range().contains(&event.data.as_ptr()), "a large one is not copied");
}

/// Texts that look like requests more often than random ones do.
fn json_like() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("{".to_owned()),
        Just("}".to_owned()),
        Just("[".to_owned()),
        Just("]".to_owned()),
        Just(",".to_owned()),
        Just(":".to_owned()),
        Just("null".to_owned()),
        Just("\"data\"".to_owned()),
        Just("\"type\"".to_owned()),
        Just("\"a.b\"".to_owned()),
        Just("\"data_base64\"".to_owned()),
        Just("\"\\u0000\\ud83d\"".to_owned()),
        Just("1e999".to_owned()),
        any::<String>(),
        "[ -~]{0,8}",
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_body_makes_parsing_panic(text in json_like(), bytes: Vec<u8>) {
        for content_type in [PLAIN, CLOUD, BATCH] {
            drop(as_type(content_type, text.clone()));
            drop(as_type(content_type, bytes.clone()));
        }
    }

    #[test]
    fn no_headers_make_parsing_panic(
        pairs in prop::collection::vec(("ce-[a-z_]{0,6}|ce-(id|type|time|source)|content-type", prop::collection::vec(any::<u8>(), 0..12)), 0..8),
        body: Vec<u8>,
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_bytes(&value)) {
                headers.append(name, value);
            }
        }
        if let Ok(format) = Format::of(&headers) {
            drop(parse(format, &headers, "shop", &body.into()));
        }
    }

    #[test]
    fn whatever_is_accepted_is_within_the_rules(text in json_like()) {
        let body = format!("{{\"type\":\"a\",\"data\":{text}}}");
        if let Ok(parsed) = as_type(PLAIN, body) {
            for ParsedEvent { head, data } in parsed.events {
                prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&data).is_ok());
                prop_assert!(!head.event_type.is_empty() && !head.source.is_empty());
            }
        }
    }

    #[test]
    fn a_value_survives_percent_encoding(text in "\\PC{1,40}") {
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let event = one(parse_all(&[&BINARY[..], &[("ce-subject", encoded.as_str())]].concat(), ""));
        prop_assert_eq!(event.head.subject.as_deref(), Some(text.as_str()));
    }
}
