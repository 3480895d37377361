//! Every case as tests: in each variant that it is about, over ADS and over streams for one type.

use pontoon_xds::Variant;

use crate::peer::On;

/// By the name of the test.
pub(crate) fn on(name: &str) -> On {
    let variant = if name.starts_with("sotw") { Variant::Sotw } else { Variant::Delta };
    On { variant, ads: name.ends_with("ads") }
}

macro_rules! tests {
    ($check:path, $case:ident: $($on:ident)+) => {
        mod $case {
            $(
                #[tokio::test]
                async fn $on() {
                    let on = crate::suite::on(stringify!($on));
                    $check(stringify!($case), on, crate::cases::$case).await;
                }
            )+
        }
    };
}
pub(crate) use tests;

macro_rules! suite {
    ($check:path) => {
        crate::suite::suite! { $check;
            both:
                an_empty_first_request_means_all, a_star_means_all, all_of_nothing_is_said_to_be_nothing,
                names_are_answered_with_just_these, a_name_is_added, a_dropped_name_is_told_no_more,
                a_dropped_name_that_is_taken_up_again_is_sent_again,
                the_last_dropped_name_leaves_nothing_and_not_all, a_name_that_does_not_exist_is_answered,
                a_name_that_comes_to_exist_is_sent, who_comes_before_anything_is_published_waits_for_it,
                an_update_is_sent, an_update_brings_just_what_changed_or_all, an_addition_is_sent,
                a_removal_is_told, the_removal_of_the_last_one_is_told, the_removal_of_a_named_one_is_told,
                what_was_removed_comes_again, many_changes_end_with_the_last,
                versions_change_with_the_content_and_only_then, each_response_has_a_nonce_of_its_own,
                what_was_accepted_is_not_sent_again, a_refused_version_is_not_sent_again,
                after_a_refusal_the_next_version_is_sent, the_very_first_response_may_be_refused,
                an_answer_with_an_old_nonce_is_none, the_next_response_waits_for_the_answer, who_resumes_with_the_newest_goes_on,
                streams_of_one_node_do_not_disturb_each_other;
            sotw: a_missing_endpoint_set_is_no_removal, by_version_info_what_changed_is_sent;
            delta:
                a_name_that_is_subscribed_twice_is_sent_again, a_name_dropped_under_a_wildcard_is_sent_again,
                by_initial_versions_only_what_changed_is_sent,
                by_initial_versions_of_names_only_what_changed_is_sent;
            ads:
                types_are_told_apart_on_one_stream, a_refusal_of_one_type_holds_up_no_other,
                an_unanswered_type_holds_up_no_other, an_ads_stream_without_type_url_is_refused;
            delta_ads: a_dropped_wildcard_leaves_the_names;
            streams: a_stream_for_one_type_needs_no_type_url;
        }
    };
    ($check:path;
        both: $($both:ident),+;
        sotw: $($sotw:ident),+;
        delta: $($delta:ident),+;
        ads: $($ads:ident),+;
        delta_ads: $($delta_ads:ident),+;
        streams: $($streams:ident),+;
    ) => {
        $(crate::suite::tests!($check, $both: sotw_ads delta_ads sotw_streams delta_streams);)+
        $(crate::suite::tests!($check, $sotw: sotw_ads sotw_streams);)+
        $(crate::suite::tests!($check, $delta: delta_ads delta_streams);)+
        $(crate::suite::tests!($check, $ads: sotw_ads delta_ads);)+
        $(crate::suite::tests!($check, $delta_ads: delta_ads);)+
        $(crate::suite::tests!($check, $streams: sotw_streams delta_streams);)+
    };
}
pub(crate) use suite;
