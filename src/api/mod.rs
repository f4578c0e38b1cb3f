//! What users write and read: the three kinds of `memoria.arca.run/v1alpha1`, and the words that mark objects as ours.

pub mod conditions;
pub mod crds;
pub mod decision;
pub mod duration;
pub mod marks;
pub mod release;
mod schema;
pub mod settings;
pub mod upgrade;

pub use decision::{MemoriaDecision, MemoriaDecisionSpec};
pub use duration::GoDuration;
pub use release::{MemoriaRelease, MemoriaReleaseSpec, MemoriaReleaseStatus};
pub use upgrade::{MemoriaUpgrade, MemoriaUpgradeSpec, MemoriaUpgradeStatus};
