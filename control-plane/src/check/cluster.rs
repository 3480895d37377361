//! The API server: that it answers, its version, and its clock.

use std::time::{Duration, SystemTime};

use http::header::DATE;
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde::Deserialize;

use super::{Category, Check, Cluster, Unseen};

const NAME: &str = "kubernetes";
const ANSWERS: &str = "the API server answers";
const VERSION: &str = "Kubernetes is new enough";
const CLOCK: &str = "the clocks here and there agree";
/// A preStop hook that sleeps; sidecars are init containers since 1.29.
const OLDEST: (u32, u32) = (1, 30);
/// Certificates and tokens are good from a moment on.
const SKEW_WARNED: Duration = Duration::from_secs(5);
const SKEW_FAILED: Duration = Duration::from_secs(60);

pub(super) fn unknown(why: String) -> Category {
    let hint = "set KUBECONFIG, or run it in a pod with a service account";
    Category { name: NAME, checks: vec![Check::failed("a cluster is known", why, hint)] }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    git_version: String,
}

/// True: it answers.
pub(super) async fn look(cluster: &Cluster) -> (Category, bool) {
    let before = SystemTime::now();
    let answer = cluster.within(version(cluster)).await;
    let after = SystemTime::now();
    let (checks, answers) = match answer {
        Ok((version, date)) => {
            let clock = match date {
                Some(date) => clock(&date, before, after),
                None => Check::skipped(CLOCK, "the API server's answer has no date"),
            };
            (vec![Check::ok(ANSWERS), new_enough(&version), clock], true)
        }
        // Whoever may not ask for the version may not ask for anything.
        Err(Unseen::Forbidden(why) | Unseen::Other(why)) => {
            let hint = "look at the server in KUBECONFIG, at the way there, and at your credentials: kubectl version";
            (vec![Check::failed(ANSWERS, why, hint)], false)
        }
    };
    (Category { name: NAME, checks }, answers)
}

/// The version, and when the API server says it is.
async fn version(cluster: &Cluster) -> Result<(String, Option<String>), kube::Error> {
    let request = http::Request::get("/version").body(Body::empty()).map_err(kube::Error::HttpError)?;
    let answer = cluster.client.send(request).await?;
    let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        let said = format!("/version is answered {status}: {}", String::from_utf8_lossy(&body));
        return Err(kube::Error::Service(said.into()));
    }
    let version: Version = serde_json::from_slice(&body).map_err(kube::Error::SerdeError)?;
    Ok((version.git_version, date))
}

fn new_enough(version: &str) -> Check {
    let (major, minor) = OLDEST;
    match numbers(version) {
        Some(is) if is >= OLDEST => Check::seen(VERSION, version),
        Some(_) => Check::failed(
            VERSION,
            format!("it is {version}"),
            &format!("upgrade the cluster to {major}.{minor} or newer"),
        ),
        None => Check::skipped(VERSION, format!("the API server says that it is {version:?}")),
    }
}

/// The first two of `v1.37.2+more`, or of `v1.6.0-rc.1`.
pub(super) fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim_start_matches('v').split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// `date` was said between two moments here, and is cut off to whole seconds.
fn clock(date: &str, before: SystemTime, after: SystemTime) -> Check {
    let Ok(there) = jiff::fmt::rfc2822::parse(date) else {
        return Check::skipped(CLOCK, format!("the API server's date is {date:?}"));
    };
    let there = SystemTime::from(there.timestamp());
    let ahead = there.duration_since(after).unwrap_or_default();
    let behind = before.duration_since(there + Duration::from_secs(1)).unwrap_or_default();
    let apart = ahead.max(behind);
    let word = if ahead > behind { "behind" } else { "ahead of" };
    let why = format!("this machine is {:.0} s {word} the API server", apart.as_secs_f64());
    let hint = "let both ask a time server (NTP); nodes and VMs, too: certificates and tokens are good from a moment on";
    match apart {
        apart if apart > SKEW_FAILED => Check::failed(CLOCK, why, hint),
        apart if apart > SKEW_WARNED => Check::warning(CLOCK, why, hint),
        _ => Check::ok(CLOCK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Outcome;

    #[test]
    fn a_version_is_judged_by_its_first_two_numbers() {
        for (version, expected) in [
            ("v1.37.2", Outcome::Ok),
            ("v1.30.0", Outcome::Ok),
            ("v1.30.4-gke.100+x", Outcome::Ok),
            ("v2.0.0", Outcome::Ok),
            ("v1.29.11", Outcome::Failed),
            ("v0.0.0-master", Outcome::Failed),
            ("unknown", Outcome::Skipped),
        ] {
            assert_eq!(new_enough(version).outcome, expected, "{version}");
        }
    }

    #[test]
    fn clocks_are_apart_by_more_than_the_answer_took() {
        let date = "Sat, 28 Nov 2026 12:00:00 GMT";
        let at = |seconds: i64| {
            let noon = jiff::fmt::rfc2822::parse(date).unwrap().timestamp();
            SystemTime::from(noon + jiff::SignedDuration::from_secs(seconds))
        };
        for (before, after, expected) in [
            (0, 0, Outcome::Ok),
            (1, 2, Outcome::Ok),
            (-30, 30, Outcome::Ok),
            (-5, -4, Outcome::Ok),
            (7, 7, Outcome::Warning),
            (-20, -10, Outcome::Warning),
            (70, 71, Outcome::Failed),
            (-3700, -3600, Outcome::Failed),
        ] {
            assert_eq!(clock(date, at(before), at(after)).outcome, expected, "{before} {after}");
        }
        let ahead = clock(date, at(101), at(101)).why.unwrap();
        assert_eq!(ahead, "this machine is 100 s ahead of the API server");
        let behind = clock(date, at(-100), at(-100)).why.unwrap();
        assert_eq!(behind, "this machine is 100 s behind the API server");
        assert_eq!(clock("noon", at(0), at(0)).outcome, Outcome::Skipped);
    }
}
