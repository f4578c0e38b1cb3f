//! The release machine: (plan, journal, observed, now) → (next journal, actions). Pure: no I/O, no clock, no client.
//!
//! A phase is a function of what is planned, journalled and seen. The driver in [`decide()`] begins phases, keeps their
//! limits, turns back on failure and closes the attempt; it is the only place that moves the journal forward.
//! The caller stores the returned journal *before* it carries the actions out. To add a phase: write one module with a
//! `step` function and add one line to [`phase::FORWARD`].

pub mod action;
pub mod at_risk;
mod decide;
pub mod estimate;
pub mod hold;
pub mod image;
pub mod phase;
pub mod preflight;
pub mod retry;
pub mod seen;
pub mod settings;
pub mod version;

pub use action::{Action, Precondition, Prior};
pub use decide::{Decision, decide};
pub(crate) use decide::{cut, unsuspend};
pub use seen::Observed;

#[cfg(test)]
mod holds;
#[cfg(test)]
mod job_checks;
#[cfg(test)]
mod kinds;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod world;
