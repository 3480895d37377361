//! The object at the centre: where each service stands between its legacy and its target pool, who moved it
//! there and why. [`stage`] decides which step is allowed, [`book`] what becomes of a command or a changed file,
//! [`keeper`] keeps states and the [`audit`] log, with the [`ledger`] in one transaction. Nothing here knows how a stage becomes routes: that is `compile`'s.

pub mod audit;
pub mod book;
pub mod keeper;
pub mod ledger;
pub mod sides;
pub mod stage;
