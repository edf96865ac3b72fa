//! What is to be done for a pool, decided from what it should be and what is
//! there. Pure.

use k8s_openapi::{api::apps::v1::StatefulSet, apimachinery::pkg::api::resource::Quantity};
use serde::Serialize;
use serde_json::Value;

use super::{
    build::{self, Prepared},
    drift,
    gather::Gathered,
    settings::PoolSettings,
    validate::{ValidatedPool, Volume, claim_size, claim_template},
};
use crate::api::quantity;

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) network_policy: Step,
    pub(super) disruption_budget: Step,
    pub(super) pods_service: Step,
    pub(super) ingest_service: Step,
    pub(super) maybe_growth: Option<Growth>,
    pub(super) stateful_set: Step,
}

/// What is to be done with one object.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// It is what it should be.
    Keep,
    /// It is absent or differs.
    Apply(Value),
}

/// A volume has to grow: the claim is patched, then the StatefulSet, whose
/// template cannot be changed, is replaced under its running pod.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Growth {
    pub(super) size: Quantity,
    /// The StatefulSet with the size that the volume has now, to be applied if
    /// the claim may not grow: a StorageClass without expansion must not keep a
    /// new image from being rolled out.
    pub(super) ungrown: Step,
}

/// Decides what is to be done.
pub(super) fn plan(pool: &ValidatedPool, gathered: &Gathered, settings: &PoolSettings, namespace: &str) -> Plan {
    let build = |pool: &ValidatedPool| build::build(pool, settings, &gathered.api_servers, namespace);
    let Prepared { network_policy, disruption_budget, pods_service, ingest_service, stateful_set } = build(pool);
    let live = gathered.maybe_stateful_set.as_ref();
    // What is on its way out is made again when it is gone; its end wakes the reconcile.
    let is_ending = live.is_some_and(|live| live.metadata.deletion_timestamp.is_some());
    let maybe_growth = live.filter(|_| !is_ending).and_then(|live| outgrown(pool, live)).map(|present| {
        let volume = Volume { size: present, ..pool.volume.clone() };
        let ungrown = build(&ValidatedPool { volume, ..pool.clone() }).stateful_set;
        Growth { size: pool.volume.size.clone(), ungrown: step(ungrown, live) }
    });
    Plan {
        network_policy: step(network_policy, gathered.maybe_network_policy.as_ref()),
        disruption_budget: step(disruption_budget, gathered.maybe_disruption_budget.as_ref()),
        pods_service: step(pods_service, gathered.maybe_pods_service.as_ref()),
        ingest_service: step(ingest_service, gathered.maybe_ingest_service.as_ref()),
        maybe_growth,
        stateful_set: if is_ending { Step::Keep } else { step(stateful_set, live) },
    }
}

/// The size in the template of the StatefulSet, if it is less than the pool's.
fn outgrown(pool: &ValidatedPool, live: &StatefulSet) -> Option<Quantity> {
    let present = claim_size(claim_template(live)?)?;
    let (has, wants) = (quantity::thousandths(&present.0)?, quantity::thousandths(&pool.volume.size.0)?);
    (has < wants).then(|| present.clone())
}

fn step<K: Serialize>(wanted: Value, maybe_live: Option<&K>) -> Step {
    let wanted = drift::sealed(wanted);
    // An object that cannot be compared is applied.
    let live = maybe_live.and_then(|live| serde_json::to_value(live).ok());
    if live.is_some_and(|live| drift::is_in_place(&wanted, &live)) { Step::Keep } else { Step::Apply(wanted) }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;
    use crate::{
        api::DeliveryPool,
        controller::pool::{gather::ApiServers, settings, validate::validate},
    };

    fn pool(size: &str) -> DeliveryPool {
        serde_json::from_value(json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "DeliveryPool",
            "metadata": { "name": "sturdy", "uid": "1" }, "spec": { "store": { "size": size } },
        }))
        .unwrap()
    }

    fn nothing() -> Gathered {
        Gathered {
            maybe_network_policy: None,
            maybe_disruption_budget: None,
            maybe_pods_service: None,
            maybe_ingest_service: None,
            maybe_stateful_set: None,
            pods: vec![],
            api_servers: ApiServers { addresses: vec![[10, 0, 0, 1].into()], ports: vec![443] },
        }
    }

    fn run(size: &str, gathered: &Gathered) -> Plan {
        let pool = validate(&pool(size), gathered.maybe_stateful_set.as_ref()).unwrap();
        plan(&pool, gathered, &settings::tests::settings(), "mail")
    }

    fn applied<K: DeserializeOwned>(step: &Step) -> Option<K> {
        match step {
            Step::Keep => None,
            Step::Apply(value) => Some(serde_json::from_value(value.clone()).unwrap()),
        }
    }

    /// The cluster after everything in the plan was applied.
    fn after(plan: &Plan) -> Gathered {
        Gathered {
            maybe_network_policy: applied(&plan.network_policy),
            maybe_disruption_budget: applied(&plan.disruption_budget),
            maybe_pods_service: applied(&plan.pods_service),
            maybe_ingest_service: applied(&plan.ingest_service),
            maybe_stateful_set: applied(&plan.stateful_set),
            ..nothing()
        }
    }

    fn kept(plan: Plan) -> [bool; 5] {
        let Plan { network_policy, disruption_budget, pods_service, ingest_service, maybe_growth: _, stateful_set } =
            plan;
        [network_policy, disruption_budget, pods_service, ingest_service, stateful_set].map(|step| step == Step::Keep)
    }

    #[test]
    fn in_an_empty_cluster_everything_is_applied_and_then_nothing() {
        let first = run("10Gi", &nothing());
        let second = run("10Gi", &after(&first));
        assert_eq!(kept(first), [false; 5]);
        assert_eq!(kept(second), [true; 5]);
    }

    #[test]
    fn a_change_by_hand_is_put_back_and_only_that() {
        let mut gathered = after(&run("10Gi", &nothing()));
        let spec = gathered.maybe_stateful_set.as_mut().unwrap().spec.as_mut().unwrap();
        spec.template.spec.as_mut().unwrap().containers[0].image = Some("registry.test/evil:1".into());
        assert_eq!(kept(run("10Gi", &gathered)), [true, true, true, true, false]);
    }

    #[test]
    fn what_others_own_is_left_alone() {
        let mut gathered = after(&run("10Gi", &nothing()));
        let service = gathered.maybe_ingest_service.as_mut().unwrap();
        service.metadata.labels.as_mut().unwrap().insert("team".into(), "mail".into());
        service.spec.as_mut().unwrap().cluster_ip = Some("10.96.3.4".into());
        assert_eq!(kept(run("10Gi", &gathered)), [true; 5]);
    }

    #[test]
    fn a_stateful_set_that_is_being_deleted_is_left_alone_until_it_is_gone() {
        let mut gathered = after(&run("10Gi", &nothing()));
        let time = serde_json::from_value(json!("2027-01-15T08:00:00Z")).unwrap();
        gathered.maybe_stateful_set.as_mut().unwrap().metadata.deletion_timestamp = Some(time);
        let plan = run("20Gi", &gathered);
        assert_eq!((plan.maybe_growth, plan.stateful_set), (None, Step::Keep));
    }

    #[test]
    fn a_volume_grows_by_its_claim_and_falls_back_to_what_it_has() {
        let gathered = after(&run("10Gi", &nothing()));
        let plan = run("20Gi", &gathered);
        let growth = plan.maybe_growth.clone().unwrap();
        assert_eq!(growth.size.0, "20Gi");
        assert_eq!(growth.ungrown, Step::Keep, "nothing else changed");
        let grown: StatefulSet = applied(&plan.stateful_set).unwrap();
        assert_eq!(claim_size(claim_template(&grown).unwrap()).unwrap().0, "20Gi");
        assert_eq!(run("20Gi", &after(&plan)).maybe_growth, None);
        assert_eq!(run("10Gi", &gathered).maybe_growth, None);
    }
}
