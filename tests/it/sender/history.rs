//! What an attempt leaves for its history under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::{Endpoint, Rig, endpoint::answer, verified};

#[tokio::test]
async fn under_load_some_successes_keep_their_detail_and_every_failure() {
    let fails = Arc::new(AtomicBool::default());
    let failing = Arc::clone(&fails);
    let endpoint = Endpoint::new(move |_| {
        if failing.load(Ordering::Relaxed) {
            return answer(500, "x-why: because\r\n", "broken");
        }
        answer(200, "", "")
    })
    .await;
    let rig = Rig::new();
    let webhook = verified(&json!({ "url": endpoint.url("/hook") }));
    let mut kept = Vec::new();
    for _ in 0..300 {
        kept.push(rig.attempt(&webhook).await.detail.is_some());
    }
    assert!(kept[..50].iter().all(|is_kept| *is_kept), "as many as the store keeps");
    // One a second comes back, however slow this machine is.
    let later = kept[50..].iter().filter(|is_kept| **is_kept).count();
    assert!(later < 200, "{later} of 250");
    fails.store(true, Ordering::Relaxed);
    for _ in 0..60 {
        let detail = rig.attempt(&webhook).await.detail.expect("the detail of a failure");
        let sent = endpoint.requests().pop().unwrap();
        let id = format!("> webhook-id: {}\n", sent.header("webhook-id").unwrap());
        assert!(detail.head.starts_with("> POST http://") && detail.head.contains(&id), "{}", detail.head);
        assert!(detail.head.contains("> webhook-signature: ***\n< 500\n"), "{}", detail.head);
        assert!(detail.head.contains("< x-why: because\n"), "{}", detail.head);
        assert_eq!(&*detail.body, "broken");
    }
}
