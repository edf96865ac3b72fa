//! The CustomResourceDefinitions: files in step with the code, everything
//! bounded, nothing that makes GitOps tools see drift.

use std::{fs, path::Path};

use posthorn::api::crds;
use serde_json::Value;

/// Client-side apply keeps the whole object in an annotation of at most 262,144
/// bytes; a CRD near that cannot be applied with plain `kubectl apply`.
const CRD_BYTES_MAX: usize = 256 * 1024;

fn each_crd() -> Vec<(String, Value)> {
    let crds = crds::all().unwrap();
    assert_eq!(crds.len(), 6);
    crds.iter().map(|crd| (crd.spec.names.plural.clone(), serde_json::to_value(crd).unwrap())).collect()
}

#[test]
fn the_files_are_what_the_code_says() {
    for crd in crds::all().unwrap() {
        let yaml = crds::to_yaml(&crd).unwrap();
        let name = format!("{}.yaml", crd.spec.names.plural);
        for folder in ["crds", "charts/posthorn/crd-files"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(&name);
            let on_disk = fs::read_to_string(&path).unwrap_or_default();
            assert!(on_disk == yaml, "{} is stale: run `make generate`", path.display());
        }
        assert!(yaml.len() < CRD_BYTES_MAX, "{name} has {} bytes", yaml.len());
    }
}

/// Walks every schema node, `path` being where it stands.
fn walk(path: &str, node: &Value, found: &mut Vec<String>) {
    let kind = node["type"].as_str().unwrap_or_default();
    if kind == "string" && node.get("maxLength").is_none() && node.get("enum").is_none() {
        found.push(format!("{path}: a string without maxLength or enum"));
    }
    if kind == "array" && node.get("maxItems").is_none() {
        found.push(format!("{path}: a list without maxItems"));
    }
    if kind == "integer" && (node.get("minimum").is_none()) && !path.ends_with("observedGeneration") {
        found.push(format!("{path}: a number without minimum"));
    }
    for forbidden in ["x-kubernetes-preserve-unknown-fields", "nullable"] {
        // An example is any JSON value; its size is bounded by that of a request.
        if node.get(forbidden).is_some() && path != "eventtypes.spec.example" {
            found.push(format!("{path}: {forbidden}"));
        }
    }
    if node.get("default").is_some() && path.contains("[]") {
        found.push(format!("{path}: a default inside a list item"));
    }
    for (name, child) in node["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), child, found);
    }
    if let Some(items) = node.get("items") {
        walk(&format!("{path}[]"), items, found);
    }
    if let Some(values) = node.get("additionalProperties") {
        if node.get("maxProperties").is_none() {
            found.push(format!("{path}: a map without maxProperties"));
        }
        walk(&format!("{path}{{}}"), values, found);
    }
}

#[test]
fn every_string_list_and_number_has_a_bound() {
    for (name, crd) in each_crd() {
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        let mut found = Vec::new();
        walk(&format!("{name}.spec"), &schema["spec"], &mut found);
        walk(&format!("{name}.status"), &schema["status"], &mut found);
        assert!(found.is_empty(), "{found:#?}");
    }
}

#[test]
fn every_field_is_described() {
    fn undescribed(path: &str, node: &Value, found: &mut Vec<String>) {
        for (name, child) in node["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if child.get("description").is_none() && !path.contains(".conditions[]") {
                found.push(path.clone());
            }
            undescribed(&path, child, found);
        }
        if let Some(items) = node.get("items") {
            undescribed(&format!("{path}[]"), items, found);
        }
    }
    for (name, crd) in each_crd() {
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        let mut found = Vec::new();
        undescribed(&format!("{name}.spec"), &schema["spec"], &mut found);
        undescribed(&format!("{name}.status"), &schema["status"], &mut found);
        assert!(found.is_empty(), "{found:#?}");
    }
}

#[test]
fn every_rule_has_a_message_that_says_what_to_do() {
    fn rules<'a>(node: &'a Value, found: &mut Vec<&'a Value>) {
        match node {
            Value::Object(members) => {
                if let Some(Value::Array(list)) = members.get("x-kubernetes-validations") {
                    found.extend(list);
                }
                members.values().for_each(|v| rules(v, found));
            }
            Value::Array(items) => items.iter().for_each(|v| rules(v, found)),
            _ => {}
        }
    }
    for (name, crd) in each_crd() {
        let mut found = Vec::new();
        rules(&crd, &mut found);
        assert!(!found.is_empty());
        for rule in found {
            let message = rule["message"].as_str().unwrap_or_default();
            assert!(message.len() > 15, "{name}: rule {} has no message", rule["rule"]);
        }
    }
}

#[test]
fn a_fresh_object_is_not_taken_for_ready() {
    for (name, crd) in each_crd() {
        let version = &crd["spec"]["versions"][0];
        let status = &version["schema"]["openAPIV3Schema"]["properties"]["status"];
        // A card is as it is: nothing about it has to be reached.
        let expected = if name == "deadletters" { Value::Null } else { Value::from(-1) };
        assert_eq!(status["default"]["observedGeneration"], expected, "{name}");
        assert_eq!(version["subresources"].get("status").is_some(), name != "deadletters", "{name}");
    }
}

#[test]
fn there_are_no_empty_lists_that_would_show_as_drift() {
    fn empty(path: &str, node: &Value, found: &mut Vec<String>) {
        match node {
            Value::Array(items) if items.is_empty() => found.push(path.to_owned()),
            Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| empty(&format!("{path}[{i}]"), v, found)),
            Value::Object(members) => members.iter().for_each(|(k, v)| empty(&format!("{path}.{k}"), v, found)),
            _ => {}
        }
    }
    for (name, crd) in each_crd() {
        let mut found = Vec::new();
        empty(&name, &crd, &mut found);
        assert!(found.is_empty(), "{found:#?}");
    }
}

#[test]
fn secret_references_have_no_namespace() {
    fn refs(path: &str, node: &Value, found: &mut Vec<String>) {
        for (name, child) in node["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            let lower = name.to_lowercase();
            let members = child.get("properties").or_else(|| child["items"].get("properties"));
            if (lower.ends_with("ref") || lower.ends_with("from"))
                && members.is_some_and(|m| m.get("namespace").is_some())
            {
                found.push(path.clone());
            }
            refs(&path, child, found);
        }
    }
    for (name, crd) in each_crd() {
        let mut found = Vec::new();
        refs(&name, &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut found);
        assert!(found.is_empty(), "{found:#?}");
    }
}
