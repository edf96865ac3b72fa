//! How SQLite answers what upkeep asks often.

use super::{
    super::{expiry, replay, retention, scans, sweep},
    *,
};

#[tokio::test]
async fn no_question_of_upkeep_scans_a_table_or_sorts() {
    let plan_of = query_plans().await;
    let check = |sql: &str| {
        let plan = plan_of(sql).replace("SCAN CONSTANT ROW", "");
        let is_good = !plan.contains("TEMP B-TREE") && !plan.contains("SCAN");
        assert!(is_good, "{sql}: {plan}");
        plan
    };
    let cards = "SELECT hook, seq, reason, code, err, tries, at, wall, card FROM dead";
    for (which, index) in [
        ("(hook, seq) > (?1, ?2) AND card = 0 ORDER BY hook, seq LIMIT ?3", "dead_card (card=? AND"),
        ("hook = ?1 AND seq > ?2 AND card = 0 ORDER BY seq LIMIT ?3", "dead_card"),
        ("(hook, seq) > (?1, ?2) ORDER BY hook, seq LIMIT ?3", "dead_hook"),
        ("hook = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3", "dead_hook"),
    ] {
        let plan = check(&format!("{cards} WHERE {which}"));
        assert!(plan.contains(index), "{which}: {plan}");
    }
    for sql in [
        scans::NEXT_FAN,
        scans::FAN_OF_KEY,
        scans::FIRST_FAN_OF_KEY,
        scans::END_FAN,
        scans::NEXT_BACKFILL,
        replay::NEXT_REPLAY,
        replay::ALL_DEAD,
        expiry::OWED_OLD,
        expiry::RETRY_WALK,
        expiry::PARKED_WALK,
        retention::OWED_WALK,
        retention::EVENTS_TO_REMOVE,
        retention::EVENTS_NEXT,
        retention::REFERRED,
        sweep::ATTEMPTS_OF,
        retention::DEAD_OLD,
        "SELECT min(first) FROM scan WHERE kind = 'fan' AND first >= ?1 AND first < ?2",
        "SELECT id FROM hook WHERE gone_at IS NOT NULL AND gone_at <= ?1 LIMIT 1",
        "DELETE FROM attempt WHERE (bucket, hook, id) IN (SELECT bucket, hook, id FROM attempt WHERE bucket = ?1 LIMIT ?2)",
        "DELETE FROM dedup WHERE (bucket, h) IN (SELECT bucket, h FROM dedup WHERE bucket < ?1 ORDER BY bucket, h LIMIT ?2)",
        "DELETE FROM replay_item WHERE (scan, seq) IN (SELECT scan, seq FROM replay_item WHERE scan = ?1 LIMIT ?2)",
        "SELECT id FROM scan WHERE kind = 'replay' AND ns_uid = ?1 LIMIT 1",
        "SELECT id FROM scan WHERE state >= 3 AND begun < ?1 ORDER BY begun LIMIT ?2",
    ] {
        check(sql);
    }
}
