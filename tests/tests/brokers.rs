//! What the ports to a log promise (`millrace::broker`), written once and run on each log that there is: the embedded one, Kafka
//! by both protocols of its consumer groups, and the simulator that the runtime is tested on.

mod brokers {
    pub(crate) mod handler;
    pub(crate) mod letters;
    pub(crate) mod pipeline;
    pub(crate) mod publishing;
    pub(crate) mod state;
    pub(crate) mod steps;
    pub(crate) mod subjects;
    pub(crate) mod units;
}

use brokers::subjects::{Embedded, Kafka, Simulator, Subject};
use brokers::{letters, pipeline, publishing, state, units};

/// Each promise, as a test of this log.
macro_rules! promises {
    ($subject:ty, $attribute:meta, $($module:ident: $($promise:ident)*;)*) => {
        $($(
            #[$attribute]
            async fn $promise() {
                let Some(subject) = <$subject>::new().await else { return };
                super::$module::$promise(subject).await;
            }
        )*)*
    };
}

macro_rules! on_each_log {
    ($($promises:tt)*) => {
        mod embedded {
            use super::*;
            promises! { Embedded, tokio::test(flavor = "multi_thread"), $($promises)* }
        }
        mod kafka {
            use super::*;
            promises! { Kafka<false>, tokio::test(flavor = "multi_thread"), $($promises)* }
        }
        mod kafka_consumer_protocol {
            use super::*;
            promises! { Kafka<true>, tokio::test(flavor = "multi_thread"), $($promises)* }
        }
        mod simulator {
            use super::*;
            promises! { Simulator, tokio::test(start_paused = true), $($promises)* }
        }
    };
}

on_each_log! {
    publishing:
        what_is_published_is_read_back_as_it_was
        a_refused_batch_names_the_record_and_leaves_nothing
        topics_are_made_once_and_listed
        reading_what_is_not_there_is_refused_or_empty;
    units:
        a_subscription_assigns_each_partition_from_its_beginning
        subscribing_to_a_missing_topic_names_it
        where_a_function_starts_is_decided_once
        fetch_gives_what_there_is_up_to_its_bounds
        fetch_waits_for_what_is_published
        a_commit_is_restored_as_it_was_written
        keys_older_than_the_window_are_not_restored
        a_unit_restores_its_share_of_the_newest_keys
        outputs_become_visible_with_the_commit
        content_that_the_log_refuses_leaves_nothing
        a_commit_is_not_undone_by_dropping_its_future
        who_takes_over_goes_on_and_who_lost_commits_nothing;
    state:
        state_is_committed_with_all_else_or_not_at_all
        state_is_listed_in_pages_by_key;
    letters:
        a_letter_goes_through_its_life_cycle
        a_redrive_keeps_the_record_and_counts_itself
        letters_are_listed_by_identity_in_pages
        a_letter_that_a_person_closed_meanwhile_stays_closed
        a_letter_that_comes_again_is_counted_once;
    pipeline:
        effects_happen_once_in_order_and_failures_wait_for_a_person
        what_is_settled_is_committed_while_the_next_event_is_handled
        an_outage_burns_few_attempts
        failing_keys_leave_room_for_new_ones
        hundreds_of_failing_keys_are_remembered;
}
