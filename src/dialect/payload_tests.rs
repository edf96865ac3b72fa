//! Tests of the payloads: golden bodies, and laws that hold for every event.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, value::RawValue};

use super::*;
use crate::{
    dialect::{
        SigningKey, SigningKeys,
        sign::{Message, sign},
    },
    event::{EventId, Pos, StoreTime},
    runtime::secret::SecretBytes,
};

const DIALECTS: [Dialect; 5] =
    [Dialect::StandardWebhooks, Dialect::CloudEvents, Dialect::Improvado, Dialect::Analytics, Dialect::Impira];
/// Numbers, escapes and order that a parser would not give back as they are.
const DATA: &str = r#" {"z":1.0, "a":1e400,"e":"\u00e9\/" ,"n":12345678901234567890123} "#;

fn event(content_type: Option<&str>, data: impl Into<Bytes>) -> Event {
    Event {
        id: EventId { time_ms: 1_795_000_000_000, epoch: 1, partition: 0, pos: Pos(42) },
        at: StoreTime(0),
        accepted: "2026-11-23T09:00:00.1234567Z".parse().unwrap(),
        namespace: Arc::from("shop"),
        namespace_uid: Arc::from("uid"),
        head: EventHead {
            event_type: "order.paid".into(),
            source: "shop".into(),
            content_type: content_type.map(Into::into),
            ..EventHead::default()
        },
        data: data.into(),
    }
}

fn rendered(dialect: Dialect, event: &Event) -> Result<(Option<String>, Vec<u8>), Unrenderable> {
    let payload = render(Shape::of(dialect), event)?;
    Ok((payload.content_type.map(Cow::into_owned), payload.body.to_vec()))
}

fn check(dialect: Dialect, event: &Event, expected: Result<(Option<&str>, &str), Unrenderable>) {
    let expected = expected.map(|(content_type, body)| (content_type.map(str::to_owned), body.as_bytes().to_vec()));
    assert_eq!(rendered(dialect, event), expected, "{dialect:?}");
}

#[test]
fn every_dialect_has_its_envelope_and_leaves_the_data_as_it_is() {
    let id = event(None, "").id;
    let mut event = event(None, DATA);
    let json =
        |body: String| move |dialect, event: &Event| check(dialect, event, Ok((Some("application/json"), &body)));
    let at = "2026-11-23T09:00:00.123Z";
    json(format!(r#"{{"type":"order.paid","timestamp":"{at}","data":{DATA}}}"#))(Dialect::StandardWebhooks, &event);
    json(format!(r#"{{"id":"{id}","type":"order.paid","timestamp":"{at}","data":{DATA}}}"#))(
        Dialect::Improvado,
        &event,
    );
    json(format!(r#"{{"event":"order.paid","timestamp":"{at}","tenantId":"shop","data":{DATA}}}"#))(
        Dialect::Analytics,
        &event,
    );
    json(DATA.to_owned())(Dialect::Impira, &event);
    event.head.extensions = vec![("tenantid".into(), "t\"1\n".into())];
    event.head.time = Some("2026-01-02T03:04:05.5Z".parse().unwrap());
    json(format!(
        r#"{{"event":"order.paid","timestamp":"2026-01-02T03:04:05.5Z","tenantId":"t\"1\u000a","data":{DATA}}}"#
    ))(Dialect::Analytics, &event);
}

#[test]
fn data_that_is_not_json_goes_out_raw_where_a_dialect_can_say_so() {
    let event = event(Some("image/png"), &b"\x89PNG\xff"[..]);
    let raw = Ok((Some("image/png".to_owned()), b"\x89PNG\xff".to_vec()));
    assert_eq!(rendered(Dialect::StandardWebhooks, &event), raw);
    assert_eq!(rendered(Dialect::CloudEvents, &event), raw);
    for dialect in [Dialect::Improvado, Dialect::Analytics, Dialect::Impira] {
        check(dialect, &event, Err(Unrenderable::OtherData));
    }
}

#[test]
fn what_calls_itself_json_and_is_none_is_sent_by_nobody_who_makes_json_of_it() {
    for data in ["{", "{} {}", "\u{feff}{}", "NaN", " "] {
        let event = event(Some("application/json"), data);
        for dialect in [Dialect::StandardWebhooks, Dialect::Improvado, Dialect::Analytics, Dialect::Impira] {
            check(dialect, &event, Err(Unrenderable::NotJson));
        }
        check(Dialect::CloudEvents, &event, Ok((Some("application/json"), data)));
    }
    let latin = event(None, &b"\"\xe9\""[..]);
    check(Dialect::Impira, &latin, Err(Unrenderable::NotJson));
}

#[test]
fn an_event_without_data_is_null_or_an_empty_body() {
    for content_type in [None, Some("application/json")] {
        let event = event(content_type, "");
        check(Dialect::Impira, &event, Ok((Some("application/json"), "null")));
        let (_, body) = rendered(Dialect::StandardWebhooks, &event).unwrap();
        assert!(body.ends_with(b"\"data\":null}"));
        check(Dialect::CloudEvents, &event, Ok((content_type, "")));
    }
}

#[test]
fn a_type_of_content_is_json_by_its_essence() {
    let cases = [
        ("application/json", true),
        ("Application/JSON; charset=utf-8", true),
        ("text/json", true),
        ("application/vnd.github+JSON ;v=1", true),
        ("+json", false),
        ("application/jsonl", false),
        ("text/plain; a=application/json", false),
        ("", false),
        ("é+json", true),
    ];
    for (text, expected) in cases {
        assert_eq!(is_json(text), expected, "{text}");
    }
}

#[test]
fn a_cloud_event_travels_in_binary_mode() {
    let mut event = event(None, "{}");
    let names = |event: &Event| render(Shape::of(Dialect::CloudEvents), event).unwrap().attributes;
    let id = event.id.to_string();
    let expected = [
        ("ce-specversion", "1.0"),
        ("ce-id", id.as_str()),
        ("ce-source", "shop"),
        ("ce-type", "order.paid"),
        ("ce-time", "2026-11-23T09:00:00.123Z"),
    ];
    let attributes = names(&event);
    let attributes: Vec<_> = attributes.iter().map(|(name, value)| (&**name, value.as_str())).collect();
    assert_eq!(attributes, expected);
    event.head.given_id = Some("a b".into());
    event.head.subject = Some("Euro € 😀".into());
    event.head.data_schema = Some("https://s.example/100%".into());
    event.head.extensions = vec![("traceparent".into(), "00-\"\r\n".into())];
    let attributes = names(&event);
    let of = |wanted: &str| attributes.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    assert_eq!(of("ce-id"), Some("a%20b"));
    assert_eq!(of("ce-subject"), Some("Euro%20%E2%82%AC%20%F0%9F%98%80"));
    assert_eq!(of("ce-dataschema"), Some("https://s.example/100%25"));
    assert_eq!(of("ce-traceparent"), Some("00-%22%0D%0A"));
    assert_eq!(of("ce-datacontenttype"), None);
}

#[test]
fn a_shape_survives_its_number_and_numbers_stay_what_they_are() {
    let codes = DIALECTS.map(|dialect| Shape::of(dialect).code());
    assert_eq!(codes, [8, 16, 24, 32, 40]);
    for code in 0..=u8::MAX {
        assert_eq!(Shape::from_code(code).map(Shape::code), codes.contains(&code).then_some(code));
    }
}

#[test]
fn what_is_signed_passes_the_library_of_standard_webhooks() {
    const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let event = event(None, DATA);
    let payload = render(Shape::of(Dialect::StandardWebhooks), &event).unwrap();
    let key = SigningKey::parse(Dialect::StandardWebhooks, SecretBytes::new(SECRET.into())).unwrap();
    let id = event.id.to_string();
    // The library reads the clock itself.
    let message = Message { id: &id, time: crate::runtime::clock::now(), body: &payload.body };
    let headers: http::HeaderMap = sign(Dialect::StandardWebhooks, &SigningKeys::new(key, None), &message)
        .into_iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::try_from(value).unwrap()))
        .collect();
    let theirs = standardwebhooks::Webhook::new(SECRET).unwrap();
    theirs.verify(&payload.body, &headers).unwrap();
    assert!(theirs.verify(b"{}", &headers).is_err());
}

fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_filter("JSON has no NaN", |f| f.is_finite()).prop_map(|f| format!("{f:e}")),
        any::<String>().prop_map(|text| Value::String(text).to_string()),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(" , "))),
            prop::collection::vec((any::<String>(), inner), 0..4).prop_map(|members| {
                let members: Vec<_> =
                    members.iter().map(|(name, value)| format!("{} :\t{value}", Value::String(name.clone()))).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

#[derive(serde::Deserialize)]
struct Received<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(alias = "event")]
    r#type: String,
}

proptest! {
    #[test]
    fn every_envelope_is_json_with_the_data_bit_for_bit(data in any_json(), event_type: String, tenant: String) {
        let mut event = event(None, data.clone());
        event.head.event_type = event_type.clone().into();
        event.head.extensions = vec![("tenantid".into(), tenant.into())];
        for dialect in [Dialect::StandardWebhooks, Dialect::Improvado, Dialect::Analytics] {
            let (_, body) = rendered(dialect, &event).unwrap();
            let received: Received<'_> = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(received.data.get(), &data);
            prop_assert_eq!(&received.r#type, &event_type);
        }
        let (_, body) = rendered(Dialect::Impira, &event).unwrap();
        prop_assert_eq!(body, data.into_bytes());
    }

    #[test]
    fn whatever_the_bytes_nothing_panics_and_what_says_json_is_json(data: Vec<u8>, content_type: Option<String>, seconds in -1_000_000_000_i64..4_000_000_000) {
        let mut event = event(content_type.as_deref(), data);
        event.head.time = Timestamp::from_second(seconds).ok();
        for dialect in DIALECTS {
            let Ok(payload) = render(Shape::of(dialect), &event) else { continue };
            let is_json_dialect = dialect != Dialect::CloudEvents;
            if is_json_dialect && payload.content_type.as_deref().is_some_and(is_json) {
                prop_assert!(serde_json::from_slice::<IgnoredAny>(&payload.body).is_ok());
            }
            prop_assert_eq!(render(Shape::of(dialect), &event).unwrap(), payload);
        }
    }

    #[test]
    fn every_attribute_is_a_header_value_that_decodes_to_itself(value: String) {
        let encoded = percent_encode(&value);
        prop_assert!(encoded.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"'));
        let mut bytes = Vec::new();
        let mut rest = encoded.as_bytes();
        while let Some((first, tail)) = rest.split_first() {
            if *first == b'%' {
                bytes.push(u8::from_str_radix(std::str::from_utf8(&tail[..2]).unwrap(), 16).unwrap());
                rest = &tail[2..];
            } else {
                bytes.push(*first);
                rest = tail;
            }
        }
        prop_assert_eq!(bytes, value.into_bytes());
    }
}
