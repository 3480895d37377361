//! The control plane. Rooms follow the flow: `registry` and `objects`, then `model`, `compile`, `serve`;
//! beside it `kubernetes`, `migration`, `addresses`, `inject`, `webhook`, `check` and `cli`. `model` and `compile` do no I/O.

pub mod addresses;
pub mod check;
pub mod cli;
pub mod compile;
pub mod infrastructure;
pub mod inject;
pub mod kubernetes;
pub mod migration;
pub mod model;
mod news;
pub mod objects;
pub mod quickstart;
pub mod registry;
pub mod serve;
pub mod webhook;
