//! What tests against real programs are made of: processes that end with their owner, ports, waiting on
//! conditions, a steady load with user ids, and a tap that records what a client says to its registry. The groups
//! themselves are in the `pontoon-e2e` binary; the benchmarks use the same parts.

pub mod gate;
pub mod helm;
pub mod inventory;
pub mod kubernetes;
pub mod load;
pub mod moving;
pub mod pontoon;
pub mod ports;
pub mod process;
pub mod report;
pub mod spring;
pub mod tap;
pub mod wait;
