//! How a decision came about. Serving passes `()`, which records nothing and costs nothing; `explain` passes a
//! [`Recorded`]. Both run the same code.

use std::net::SocketAddr;

use serde::Serialize;

/// Takes the steps of a decision.
pub trait Trace {
    /// Whether anybody listens. Where not, even the candidates that lose are not visited for their own sake.
    const ON: bool;

    /// One step; made only where somebody listens.
    fn step(&mut self, step: impl FnOnce() -> Step);
}

impl Trace for () {
    const ON: bool = false;

    #[inline]
    fn step(&mut self, _step: impl FnOnce() -> Step) {}
}

/// Keeps every step.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Recorded {
    /// In the order in which they were taken.
    pub steps: Vec<Step>,
}

impl Trace for Recorded {
    const ON: bool = true;

    fn step(&mut self, step: impl FnOnce() -> Step) {
        self.steps.push(step());
    }
}

/// One step of a decision.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// The virtual host for the request's host.
    VirtualHost {
        /// The host as sent.
        host: String,
        /// Its name; `None`: there is none.
        virtual_host: Option<String>,
    },
    /// A route that does not take the request.
    RouteSkipped {
        /// Its name.
        route: String,
        /// The first part of its match that does not hold.
        because: String,
    },
    /// A route takes a share of the requests that fit it.
    Lot {
        /// Its name.
        route: String,
        /// So many in a million, at random.
        millionths: u32,
        /// Whether it takes this one.
        drawn: bool,
    },
    /// The route that takes it.
    RouteMatched {
        /// Its name.
        route: String,
    },
    /// A hash policy was asked.
    HashPolicy {
        /// Which.
        policy: String,
        /// What it saw; `None`: nothing to hash.
        value: Option<String>,
        /// The hash so far, in hexadecimal.
        combined: Option<String>,
    },
    /// The arm of a weighted choice.
    Weighted {
        /// The request's number.
        bucket: u32,
        /// Out of so many.
        total: u32,
        /// Where the number came from.
        by: &'static str,
        /// The arms with their weights, in order.
        arms: Vec<Arm>,
        /// The arm's cluster.
        cluster: String,
    },
    /// The request's session.
    Session {
        /// What says which endpoint it is with.
        by: String,
        /// That endpoint; `None`: the balancer chooses one.
        endpoint: Option<SocketAddr>,
        /// Whether it is there and may be asked for.
        is_there: bool,
    },
}

/// One arm of a weighted choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Arm {
    /// Its cluster.
    pub cluster: String,
    /// Takes the numbers from here
    pub from: u32,
    /// to before here.
    pub to: u32,
}
