//! What keeps a failing endpoint from failing requests: ejection after failed connects, and when to try again.

pub mod outlier;
pub mod retry;
