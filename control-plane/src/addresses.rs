//! Which service has which virtual address: applications hold on to what DNS once told them, so a service keeps its
//! slot over restarts and for a long time after it has gone. [`plan`] decides, [`store`] keeps.

pub mod plan;
pub mod store;
