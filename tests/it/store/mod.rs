//! What every store must do: a suite of cases that runs on the model and on each
//! engine, and a test of random commands that compares an engine with the model.

mod cases;
pub mod clock;
mod fenced;
mod grounds;
mod model;
mod random;
pub mod router;
mod world;

/// One test a case on the store that `$world` opens.
macro_rules! conformance {
    ($store:ident, $world:expr; $($area:ident { $($case:ident,)* })*) => {
        mod $store {
            use crate::store::{cases, grounds, world::World};

            async fn world() -> World {
                $world.await
            }

            $($(
                #[tokio::test]
                async fn $case() {
                    cases::$area::$case(world().await).await;
                }
            )*)*

            #[tokio::test]
            async fn a_fence_at_any_call_leaves_it_done_in_full_or_not_at_all() {
                cases::fence::each_call_is_done_in_full_or_not_at_all(world).await;
            }
        }
    };
}

/// Every store runs every case.
macro_rules! every_store {
    ($($cases:tt)*) => {
        conformance! { on_the_model, World::new(grounds::ModelGround::fresh()); $($cases)* }
        conformance! { on_sqlite, World::new(grounds::SqliteGround::fresh()); $($cases)* }
    };
}

every_store! {
    accept {
    what_was_accepted_is_there_after_a_crash_and_owed_to_whoever_wants_it,
    an_event_that_nobody_wants_is_accepted_and_owed_to_nobody,
    an_id_that_was_given_before_is_a_duplicate_even_after_a_crash,
    the_same_id_with_other_data_is_a_conflict_and_leaves_the_others_of_its_batch,
    an_id_twice_within_a_batch_is_accepted_once,
    ids_belong_to_their_namespace_and_source,
    an_id_is_forgotten_after_the_window,
    an_empty_batch_is_accepted,
    concurrent_publishers_of_one_id_get_one_event,
    positions_grow_and_are_never_given_out_twice,
    the_dispatcher_is_told_of_events_in_their_order,
    a_namespace_that_is_full_leaves_room_for_the_others,
    a_store_that_is_full_takes_no_events_but_every_outcome,
    }
    register {
    a_fan_out_beyond_what_fits_into_the_accept_reaches_everyone,
    of_a_key_an_event_is_shown_only_after_older_ones_however_long_their_fan_out_takes,
    exactly_as_many_targets_as_fit_are_owed_with_the_accept,
    a_hook_gets_an_event_once_however_many_subscriptions_match,
    a_subscription_between_two_events_gets_the_second,
    earliest_owes_everything_without_gap_and_without_double,
    a_start_by_time_owes_what_was_accepted_since,
    a_backfill_brings_nothing_back_that_the_hook_had_through_another_subscription,
    registering_again_changes_fields_and_nothing_else,
    a_subscription_of_an_unknown_webhook_is_told_so,
    a_subscription_that_is_gone_brings_nothing_more_and_what_it_brought_stays_owed,
    a_webhook_that_comes_back_within_a_day_takes_its_backlog_up_again,
    the_backlog_of_a_webhook_that_stays_away_is_discarded_after_a_day,
    a_namespace_that_is_gone_leaves_nothing_but_its_count,
    a_namespace_is_known_by_its_events_alone_until_it_is_gone,
    notes_on_a_webhook_survive,
    every_object_is_known_again_after_a_crash,
    a_backfill_waits_for_a_webhook_that_is_gone_for_a_while,
    }
    deliver {
    an_outcome_that_does_not_fit_the_tries_is_ignored,
    retries_come_back_when_they_are_due_earliest_first,
    a_retry_is_due_at_its_millisecond,
    owed_pages_cover_everything_in_order,
    parked_deliveries_wait_behind_their_key_in_order,
    blocked_keys_are_each_told_once_and_no_more_than_asked_for,
    a_probe_of_an_open_circuit_uses_up_no_try_and_is_kept_as_an_attempt,
    the_shape_of_the_first_attempt_stays,
    attempts_are_kept_with_their_detail_newest_first,
    counters_follow_what_happens_and_survive,
    changed_counters_are_told_oldest_change_first_in_pages,
    what_is_owed_for_longer_than_the_webhook_wants_is_dead,
    expiry_comes_without_a_restart_too,
    store_time_follows_no_jump_of_the_wall_clock,
    a_start_believes_the_wall_clock_about_an_hour_at_most_and_never_backwards,
    totals_add_up_at_every_step,
    }
    dead {
    a_dead_delivery_tells_what_it_was,
    a_delivery_can_be_given_up_without_an_attempt,
    cards_are_asked_for_by_hook_and_state_in_pages,
    a_dismissed_delivery_is_discarded_once_and_no_retry_finds_it,
    a_replay_of_all_reopens_every_dead_delivery_and_no_dismissed_one,
    what_a_replay_reopens_of_an_ordered_webhook_comes_before_what_it_blocked,
    a_replay_runs_once_per_identity,
    a_replay_of_named_dead_deliveries_leaves_the_others,
    a_replay_of_events_reopens_whatever_became_of_them,
    a_replay_by_time_reopens_what_a_present_subscription_wants,
    a_dry_run_counts_and_reopens_nothing,
    a_replay_with_a_rate_takes_its_time_and_can_be_cancelled,
    a_replayed_delivery_is_owed_for_its_full_age_again,
    a_replay_of_nothing_is_complete,
    what_ended_has_ended_for_a_replay_though_another_one_opens_it_again,
    a_replay_waits_for_what_was_pending_already_and_does_not_count_it,
    retention_touches_nothing_that_is_owed,
    }
}
