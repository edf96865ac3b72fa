//! The pool `default`, as the chart's values describe it.
//!
//! It is applied server-side by a field manager of its own and without force:
//! a change of the values follows, and a field that somebody set by other means
//! stays theirs. `docs/decisions/0003-default-pool.md` tells why.

use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    core::Status,
};
use serde_json::{Value, json};

use crate::api::{DEFAULT_POOL, DeliveryPool, DeliveryPoolSpec};

/// Field manager of what the chart's values say.
pub(super) const VALUES_FIELD_MANAGER: &str = "posthorn-chart-values";

/// The pool `default` could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The values do not describe a pool.
    #[error(
        "the spec of the default pool (--default-pool, chart value defaultPool.spec) is not that of a DeliveryPool"
    )]
    Spec {
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The API server did not take it.
    #[error("cannot apply DeliveryPool {DEFAULT_POOL}")]
    Apply {
        /// What the API server said.
        source: Box<kube::Error>,
    },
}

/// Applies the pool `default`. To be repeated: it writes only what differs.
pub(super) async fn ensure(client: &Client, spec: &str) -> Result<(), Error> {
    let spec = parse(spec)?;
    match apply(client, &spec).await {
        Err(kube::Error::Api(status)) if status.is_conflict() => {
            let (spec, kept) = without(spec, &status);
            tracing::info!(fields = ?kept, "fields of DeliveryPool default were set by others and stay theirs");
            apply(client, &spec).await
        }
        result => result,
    }
    .map_err(|source| Error::Apply { source: Box::new(source) })
}

async fn apply(client: &Client, spec: &Value) -> Result<(), kube::Error> {
    let pool = json!({
        "apiVersion": DeliveryPool::api_version(&()),
        "kind": DeliveryPool::kind(&()),
        "metadata": { "name": DEFAULT_POOL },
        "spec": spec,
    });
    Api::<DeliveryPool>::all(client.clone())
        .patch(DEFAULT_POOL, &PatchParams::apply(VALUES_FIELD_MANAGER), &Patch::Apply(&pool))
        .await
        .map(drop)
}

/// The spec as it was written; it must be one that the type can read.
fn parse(text: &str) -> Result<Value, Error> {
    let spec: Value = serde_json::from_str(text).map_err(|source| Error::Spec { source })?;
    serde_json::from_value::<DeliveryPoolSpec>(spec.clone()).map_err(|source| Error::Spec { source })?;
    Ok(spec)
}

/// The spec without the fields that the API server names as owned by others,
/// and their names.
fn without(mut spec: Value, conflict: &Status) -> (Value, Vec<String>) {
    let causes = conflict.details.iter().flat_map(|details| &details.causes);
    let fields: Vec<String> = causes
        .filter(|cause| cause.reason == "FieldManagerConflict")
        .filter_map(|cause| Some(cause.field.strip_prefix(".spec.")?.to_owned()))
        .collect();
    for field in &fields {
        remove(&mut spec, field);
    }
    (spec, fields)
}

/// Removes `a.b.c`; lists are owned as a whole, so no path leads into one.
fn remove(spec: &mut Value, path: &str) {
    let pointer = path.rsplit_once('.').map(|(parent, _)| format!("/{}", parent.replace('.', "/")));
    let last = path.rsplit('.').next().unwrap_or(path);
    if let Some(Value::Object(members)) = spec.pointer_mut(pointer.as_deref().unwrap_or_default()) {
        members.remove(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflict(fields: &[&str]) -> Status {
        let causes: Vec<Value> =
            fields.iter().map(|f| json!({ "reason": "FieldManagerConflict", "message": "m", "field": f })).collect();
        serde_json::from_value(json!({ "status": "Failure", "code": 409, "details": { "causes": causes } })).unwrap()
    }

    fn check(fields: &[&str], expected: Value) {
        let spec = json!({ "store": { "size": "10Gi" }, "egress": { "allow": [], "schemes": ["https"] } });
        assert_eq!(without(spec, &conflict(fields)).0, expected);
    }

    #[test]
    fn fields_that_others_own_are_left_out() {
        check(&[".spec.store.size"], json!({ "store": {}, "egress": { "allow": [], "schemes": ["https"] } }));
        check(&[".spec.egress", ".spec.egress.schemes"], json!({ "store": { "size": "10Gi" } }));
        let all = json!({ "store": { "size": "10Gi" }, "egress": { "allow": [], "schemes": ["https"] } });
        check(&[".metadata.labels.a", ".spec.none.such"], all);
    }

    #[test]
    fn a_spec_of_another_shape_is_refused_before_it_is_sent() {
        assert!(parse(r#"{"store":{"size":"10Gi"}}"#).is_ok());
        for wrong in ["", "[]x", r#"{"store":5}"#] {
            assert!(matches!(parse(wrong), Err(Error::Spec { .. })), "{wrong}");
        }
    }
}
