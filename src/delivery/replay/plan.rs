//! What a Replay means and what its status says. Pure.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{LabelSelector, Time},
    jiff::Timestamp,
};
use kube::core::{Selector, SelectorExt};
use sha2::{Digest, Sha256};

use crate::{
    api::{
        ConditionType, Reason, Replay, ReplaySpec, ReplayStatus,
        condition::{self, ConditionStatus, WantedCondition},
    },
    delivery::{cards::Cards, directory::HookInfo},
    dialect::sign::hex,
    event::EventId,
    store::{DeadRow, ReplayRun, ReplayState, ReplayWhat},
};

/// Hash of a spec without `cancel`: with the same one a Replay runs once.
pub(super) fn spec_hash(spec: &ReplaySpec) -> String {
    let bare = ReplaySpec { cancel: None, ..spec.clone() };
    // A spec came as JSON, so it can be written as JSON.
    hex(&Sha256::digest(serde_json::to_vec(&bare).unwrap_or_default()))
}

/// What of the Webhook is sent again. `cards` are its dead Deliveries that have
/// one; they matter only for names and selectors.
///
/// # Errors
/// A selector that kube cannot read; the schema allows none.
pub(super) fn what(spec: &ReplaySpec, hook: &HookInfo, rows: &[DeadRow], cards: &Cards) -> Result<ReplayWhat, String> {
    let ReplaySpec { dead_letters, events, since, until, .. } = spec;
    if let Some(events) = events {
        // What is no id of ours matches nothing.
        return Ok(ReplayWhat::Events(
            events.ids.iter().filter_map(|id| Some(id.parse::<EventId>().ok()?.pos)).collect(),
        ));
    }
    if let Some(since) = since {
        return Ok(ReplayWhat::Range { since: since.0, until: until.as_ref().map(|until| until.0) });
    }
    let Some(dead) = dead_letters else { return Err("spec says nothing to send again".to_owned()) };
    if let Some(names) = &dead.names {
        let named = rows.iter().filter(|row| names.contains(&cards.name(hook, row.pos)));
        return Ok(ReplayWhat::Dead(named.map(|row| row.pos).collect()));
    }
    if let Some(selector) = &dead.selector {
        let selector = Selector::try_from(LabelSelector::from(selector)).map_err(|error| error.to_string())?;
        let selected = rows.iter().filter(|row| selector.matches(&cards.labels(hook, row)));
        return Ok(ReplayWhat::Dead(selected.map(|row| row.pos).collect()));
    }
    Ok(ReplayWhat::AllDead)
}

/// Whether the cards of the Webhook must be known to tell what is sent again.
pub(super) fn needs_cards(spec: &ReplaySpec) -> bool {
    spec.dead_letters.as_ref().is_some_and(|dead| dead.names.is_some() || dead.selector.is_some())
}

/// Where a Replay is, or why it is nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The Webhook does not exist, or is not one of this pool yet.
    WebhookNotFound,
    /// The spec cannot be acted upon.
    Invalid(String),
    /// It runs, or ran.
    Run(ReplayRun),
}

/// The status of a Replay; equal to the old one if nothing changed.
pub(super) fn status(replay: &Replay, standing: &Standing, now: Timestamp) -> ReplayStatus {
    let old = replay.status.clone().unwrap_or_default();
    let generation = replay.metadata.generation;
    let wanted = conditions(replay, standing);
    let conditions = condition::merge(&old.conditions, &wanted, generation, now);
    let mut status = ReplayStatus { observed_generation: generation, conditions, ..old };
    if let Standing::Run(run) = standing {
        let count = |n: u64| Some(i64::try_from(n).unwrap_or(i64::MAX));
        status.matched = count(run.matched);
        status.reopened = count(run.reopened);
        status.delivered = count(run.done.saturating_sub(run.dead));
        status.dead = count(run.dead);
        status.start_time = Timestamp::from_millisecond(run.begun_ms).ok().map(|time| Time(to_second(time)));
        if is_over(run) && status.completion_time.is_none() {
            status.completion_time = Some(Time(to_second(now)));
        }
    }
    status
}

/// Times of the API have whole seconds.
fn to_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

pub(super) fn is_over(run: &ReplayRun) -> bool {
    matches!(run.state, ReplayState::Complete | ReplayState::Cancelled)
}

/// Whether a status tells of a Replay that has ended as it stands.
pub(super) fn is_settled(replay: &Replay) -> bool {
    replay.status.as_ref().is_some_and(|status| {
        status.observed_generation == replay.metadata.generation
            && condition::is_true(&status.conditions, ConditionType::Complete)
    })
}

/// A run that began before the object was made is another object's.
fn ran_before(replay: &Replay, run: &ReplayRun) -> bool {
    let created = replay.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_millisecond());
    run.begun_ms.saturating_add(1_000) < created
}

fn conditions(replay: &Replay, standing: &Standing) -> Vec<WantedCondition> {
    let webhook = &replay.spec.webhook_ref.name;
    let (status, reason, message, progress) = match standing {
        Standing::WebhookNotFound => (
            ConditionStatus::False,
            Reason::WebhookNotFound,
            format!("The Webhook {webhook} does not exist in this namespace. Make it, or delete this Replay."),
            Some(ConditionType::Stalled),
        ),
        Standing::Invalid(what) => (
            ConditionStatus::False,
            Reason::InvalidSpec,
            format!("The Replay cannot run: {what}. Delete it and apply it anew."),
            Some(ConditionType::Stalled),
        ),
        Standing::Run(run) => of_run(replay, run),
    };
    let mut conditions =
        vec![WantedCondition { type_: ConditionType::Complete, status, reason, message: message.clone() }];
    if let Some(type_) = progress {
        conditions.push(WantedCondition { type_, status: ConditionStatus::True, reason, message });
    }
    conditions
}

fn of_run(replay: &Replay, run: &ReplayRun) -> (ConditionStatus, Reason, String, Option<ConditionType>) {
    let ReplayRun { matched, reopened, done, dead, .. } = run;
    let delivered = done.saturating_sub(*dead);
    let doing = Some(ConditionType::Reconciling);
    match run.state {
        ReplayState::Running => (
            ConditionStatus::False,
            Reason::ReplayRunning,
            format!("{reopened} of {matched} Deliveries so far are owed again."),
            doing,
        ),
        ReplayState::Sending => (
            ConditionStatus::False,
            Reason::ReplaySending,
            format!("{reopened} Deliveries are owed again; {done} of them have ended, {dead} were given up again."),
            doing,
        ),
        ReplayState::Cancelled => (
            ConditionStatus::True,
            Reason::Cancelled,
            format!("Ended by spec.cancel after {reopened} of {matched} Deliveries; those stay owed."),
            None,
        ),
        ReplayState::Complete if ran_before(replay, run) => (
            ConditionStatus::True,
            Reason::AlreadyRun,
            format!(
                "A Replay of this name and spec ran before and sent {reopened} Deliveries again. Set spec.runId to run it again."
            ),
            None,
        ),
        ReplayState::Complete if replay.spec.is_dry_run() => {
            (ConditionStatus::True, Reason::DryRun, format!("{matched} Deliveries match; nothing was sent."), None)
        }
        ReplayState::Complete if *matched == 0 => (
            ConditionStatus::True,
            Reason::NothingMatched,
            "No Delivery matches: see whether webhookRef and what is to be sent are right.".to_owned(),
            None,
        ),
        ReplayState::Complete => (
            ConditionStatus::True,
            Reason::Completed,
            format!("{matched} Deliveries matched: {delivered} were delivered, {dead} were given up again."),
            None,
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        delivery::cards::tests_support::{hook, row},
        event::Pos,
    };

    fn replay(spec: Value) -> Replay {
        let mut full = json!({ "webhookRef": { "name": "orders" } });
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "Replay", "spec": full,
            "metadata": { "name": "again", "namespace": "shop", "generation": 1, "creationTimestamp": "2026-11-18T10:00:00Z" },
        }))
        .unwrap()
    }

    fn run(state: ReplayState) -> ReplayRun {
        let begun = "2026-11-18T10:00:01Z".parse::<Timestamp>().unwrap();
        ReplayRun {
            is_known: false,
            state,
            matched: 5,
            reopened: 5,
            done: 5,
            dead: 2,
            begun_ms: begun.as_millisecond(),
        }
    }

    fn check(replay: &Replay, standing: Standing, reason: &str, complete: &str) {
        let now = "2026-11-18T10:05:00Z".parse().unwrap();
        let status = status(replay, &standing, now);
        assert_eq!((status.conditions[0].reason.as_str(), status.conditions[0].status.as_str()), (reason, complete));
        // Written again without a change, it is the same: no write is due.
        let mut written = replay.clone();
        written.status = Some(status.clone());
        let later = "2026-11-18T11:00:00Z".parse().unwrap();
        assert_eq!(super::status(&written, &standing, later), status);
    }

    #[test]
    fn a_status_says_where_the_replay_is() {
        let all = replay(json!({ "deadLetters": { "all": true } }));
        check(&all, Standing::Run(run(ReplayState::Running)), "ReplayRunning", "False");
        check(&all, Standing::Run(run(ReplayState::Sending)), "ReplaySending", "False");
        check(&all, Standing::Run(run(ReplayState::Complete)), "Completed", "True");
        check(&all, Standing::Run(run(ReplayState::Cancelled)), "Cancelled", "True");
        check(&all, Standing::WebhookNotFound, "WebhookNotFound", "False");
        check(&all, Standing::Run(ReplayRun { matched: 0, ..run(ReplayState::Complete) }), "NothingMatched", "True");
        check(&all, Standing::Run(ReplayRun { begun_ms: 0, ..run(ReplayState::Complete) }), "AlreadyRun", "True");
        let dry = replay(json!({ "deadLetters": { "all": true }, "dryRun": true }));
        check(&dry, Standing::Run(run(ReplayState::Complete)), "DryRun", "True");
    }

    #[test]
    fn the_hash_is_of_everything_but_cancel() {
        let hash = |spec| spec_hash(&replay(spec).spec);
        let all = || json!({ "deadLetters": { "all": true } });
        assert_eq!(hash(all()), hash(json!({ "deadLetters": { "all": true }, "cancel": true })));
        assert_ne!(hash(all()), hash(json!({ "deadLetters": { "all": true }, "runId": "2" })));
        assert_ne!(hash(all()), hash(json!({ "deadLetters": { "all": true }, "rate": 1 })));
    }

    #[test]
    fn what_is_sent_again_is_told_by_name_label_id_or_time() {
        let cards = Cards::new("store", "default");
        let orders = hook(1, "orders");
        let rows: Vec<_> =
            [(1, 503), (2, 404), (3, 503)].map(|(pos, code)| DeadRow { code: Some(code), ..row(1, pos) }).into();
        let check = |spec: Value, expected: ReplayWhat| {
            assert_eq!(what(&replay(spec).spec, &orders, &rows, &cards), Ok(expected));
        };
        check(json!({ "deadLetters": { "all": true } }), ReplayWhat::AllDead);
        let names = [cards.name(&orders, Pos(3)), "orders-unknown".to_owned()];
        check(json!({ "deadLetters": { "names": names } }), ReplayWhat::Dead(vec![Pos(3)]));
        let selector = json!({ "matchLabels": { "posthorn.dev/code": "503" } });
        check(json!({ "deadLetters": { "selector": selector } }), ReplayWhat::Dead(vec![Pos(1), Pos(3)]));
        let id = EventId { time_ms: 1, epoch: 1, partition: 0, pos: Pos(9) }.to_string();
        check(json!({ "events": { "ids": [id, "evt_no"] } }), ReplayWhat::Events(vec![Pos(9)]));
        let since = "2026-11-18T09:00:00Z";
        check(json!({ "since": since }), ReplayWhat::Range { since: since.parse().unwrap(), until: None });
    }

    #[test]
    fn a_replay_is_settled_when_its_status_says_that_this_generation_is_complete() {
        let mut done = replay(json!({ "deadLetters": { "all": true } }));
        assert!(!is_settled(&done));
        done.status = Some(status(&done, &Standing::Run(run(ReplayState::Complete)), Timestamp::UNIX_EPOCH));
        assert!(is_settled(&done));
        done.metadata.generation = Some(2);
        assert!(!is_settled(&done));
    }
}
