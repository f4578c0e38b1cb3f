//! The Jobs for an SQLite file: the same orders, reports and order of work as for PostgreSQL, in the operator's image,
//! with the Server's own claims mounted.

pub mod baseline;
pub mod fence;
pub mod guard;
pub mod inspect;
pub mod place;
pub mod reference;
pub mod restore;
pub mod snapshot;
