//! The Kubernetes side: live reads into what the machine sees, and the writes that it asks for. Nothing is decided
//! here, nothing is cached, nothing sleeps: every request has a deadline and no retry of its own.

pub mod act;
pub mod adopt;
pub mod candidate;
pub mod client;
mod data;
pub mod error;
pub mod events;
mod findings;
mod jobs;
pub mod lease;
pub mod managers;
pub mod observe;
mod pods;
pub mod preflight;
pub mod settings;
mod template;
pub mod watches;
mod worker;
mod workload;

pub use act::act;
pub use adopt::{Adopted, adopt};
pub use client::connect;
pub use error::{ClusterError, Kind};
pub use observe::{observe, observe_run, strangers};
