//! Whether an object in the cluster already is what it should be, so that a
//! settled cluster sees no writes.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Annotation with a digest of what was applied. It tells a field that we no
/// longer set from a field that others set.
pub(super) const APPLIED_ANNOTATION: &str = "posthorn.dev/applied";
/// Bytes of the digest that are kept: a change by chance or mistake is to be
/// seen, no adversary is to be kept out.
const DIGEST_BYTES: usize = 12;

/// The object with the digest of itself in its annotations.
pub(super) fn sealed(mut object: Value) -> Value {
    let digest = Sha256::digest(object.to_string());
    let hex: String = digest.iter().take(DIGEST_BYTES).map(|byte| format!("{byte:02x}")).collect();
    object["metadata"]["annotations"][APPLIED_ANNOTATION] = json!(hex);
    object
}

/// Whether everything that `wanted` says is so in `live`. What `live` has beside
/// that belongs to others: defaults, status, fields of other managers.
pub(super) fn is_in_place(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => {
            wanted.iter().all(|(key, value)| live.get(key).is_some_and(|live| is_in_place(value, live)))
        }
        (Value::Array(wanted), Value::Array(live)) if are_named(wanted) && are_named(live) => {
            wanted.iter().all(|item| live.iter().any(|l| l["name"] == item["name"] && is_in_place(item, l)))
        }
        (Value::Array(wanted), Value::Array(live)) => {
            wanted.len() == live.len() && wanted.iter().zip(live).all(|(wanted, live)| is_in_place(wanted, live))
        }
        (wanted, live) => wanted == live,
    }
}

/// Lists whose items have names are merged by name; other managers may add to them.
fn are_named(items: &[Value]) -> bool {
    items.iter().all(|item| item.get("name").is_some_and(Value::is_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(wanted: Value, live: Value, expected: bool) {
        assert_eq!(is_in_place(&wanted, &live), expected, "{wanted} in {live}");
    }

    #[test]
    fn what_others_add_is_no_drift() {
        check(json!({ "a": 1 }), json!({ "a": 1, "b": 2 }), true);
        check(json!({ "a": { "b": [] } }), json!({ "a": { "b": [], "c": 1 } }), true);
        check(
            json!({ "env": [{ "name": "A", "value": "1" }] }),
            json!({ "env": [{ "name": "B" }, { "name": "A", "value": "1", "x": 0 }] }),
            true,
        );
    }

    #[test]
    fn what_others_change_or_remove_is_drift() {
        check(json!({ "a": 1 }), json!({ "a": 2 }), false);
        check(json!({ "a": 1 }), json!({}), false);
        check(
            json!({ "env": [{ "name": "A", "value": "1" }] }),
            json!({ "env": [{ "name": "A", "value": "2" }] }),
            false,
        );
        check(json!({ "ports": [{ "port": 1 }] }), json!({ "ports": [{ "port": 1 }, { "port": 2 }] }), false);
        check(json!({ "values": ["a"] }), json!({ "values": ["b"] }), false);
    }

    #[test]
    fn the_digest_changes_with_the_object_and_only_with_it() {
        let object = |replicas: i32| sealed(json!({ "metadata": { "name": "a" }, "spec": { "replicas": replicas } }));
        assert_eq!(object(1), object(1));
        assert_ne!(object(1)["metadata"], object(2)["metadata"]);
    }
}
