//! The chart without Helm: its schema is closed, and it agrees with the code on
//! names, ports and the shape of a DeliveryPool. What it renders to is tested on
//! a real cluster.

use std::{collections::BTreeSet, fs, path::Path};

use clap::{Args, Command};
use posthorn::{
    api::crds,
    controller::{ControllerArguments, names},
    wire::{HEALTH_PORT, INTERNAL_AUDIENCE, INTERNAL_PORT},
};
use serde::Deserialize;
use serde_json::Value;

fn chart(path: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/posthorn");
    fs::read_to_string(folder.join(path)).unwrap()
}

fn yaml(text: &str) -> Value {
    Value::deserialize(serde_yaml::Deserializer::from_str(text)).unwrap()
}

fn schema() -> Value {
    serde_json::from_str(&chart("values.schema.json")).unwrap()
}

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
}

#[test]
fn the_schema_of_the_values_is_closed() {
    fn open(path: &str, node: &Value, found: &mut Vec<String>) {
        if node.get("properties").is_some() && node["additionalProperties"] != false {
            found.push(path.to_owned());
        }
        for (name, child) in node.as_object().into_iter().flatten() {
            open(&format!("{path}/{name}"), child, found);
        }
    }
    let mut found = Vec::new();
    open("", &schema(), &mut found);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_value_is_in_the_schema_and_the_other_way_round() {
    fn compare(path: &str, values: &Value, schema: &Value) {
        let Some(properties) = schema.get("properties") else { return };
        // A value without a default is one that is given by others or a spec.
        let known: BTreeSet<String> = keys(properties).into_iter().filter(|key| key != "global").collect();
        if path != "/defaultPool/spec" && !path.contains("/resources/") {
            assert_eq!(keys(values), known, "{path}");
        }
        for (name, value) in values.as_object().into_iter().flatten() {
            compare(&format!("{path}/{name}"), value, &properties[name]);
        }
    }
    compare("", &yaml(&chart("values.yaml")), &schema());
}

#[test]
fn the_schema_of_the_default_pool_has_every_field_of_a_delivery_pool() {
    fn compare(path: &str, crd: &Value, values: &Value) {
        if let (Some(crd), Some(values)) = (crd.get("properties"), values.get("properties")) {
            assert_eq!(keys(crd), keys(values), "{path}");
            for (name, child) in crd.as_object().unwrap() {
                compare(&format!("{path}.{name}"), child, &values[name]);
            }
        }
        if let (Some(crd), Some(values)) = (crd.get("items"), values.get("items")) {
            compare(&format!("{path}[]"), crd, values);
        }
    }
    let pool = crds::all().unwrap().into_iter().find(|crd| crd.spec.names.kind == "DeliveryPool").unwrap();
    let pool = serde_json::to_value(pool).unwrap();
    let spec = &pool["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    compare("spec", spec, &schema()["properties"]["defaultPool"]["properties"]["spec"]);
}

/// A variable that the controller does not read would be a setting without effect.
#[test]
fn the_controller_reads_every_variable_that_the_chart_sets() {
    let command = ControllerArguments::augment_args(Command::new("controller"));
    let read: BTreeSet<_> = command.get_arguments().filter_map(|a| a.get_env()?.to_str().map(str::to_owned)).collect();
    let template = chart("templates/controller.yaml");
    let set: BTreeSet<_> = template.lines().filter_map(|line| line.trim().strip_prefix("- name: POSTHORN_")).collect();
    assert!(set.len() > 5);
    for name in set {
        assert!(read.contains(&format!("POSTHORN_{name}")), "POSTHORN_{name} is set and not read");
    }
}

#[test]
fn chart_and_code_agree_on_names_and_ports() {
    let controller = chart("templates/controller.yaml");
    assert!(controller.contains(&format!("containerPort: {HEALTH_PORT}")));
    assert!(controller.contains(&format!("audience: {INTERNAL_AUDIENCE}")));
    assert!(chart("templates/networkpolicy.yaml").contains(&format!("port: {INTERNAL_PORT}")));
    let selector = format!("{}: {}\n{}: {}", names::NAME_LABEL, names::NAME, names::COMPONENT_LABEL, names::CONTROLLER);
    assert!(chart("templates/_helpers.tpl").contains(&selector));
    assert!(chart("templates/rbac-delivery.yaml").contains(&format!("name: {}", names::DELIVERY_SERVICE_ACCOUNT)));
}
