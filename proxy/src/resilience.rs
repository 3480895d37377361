//! What keeps a failing endpoint from failing requests: ejection after failed connects, when to try again, and how much
//! a cluster may hold at a time.

pub mod breakers;
pub mod outlier;
pub mod retry;
