//! Condition types and reasons, as kstatus reads them: `Ready` is always present, the others only while True.

/// True: the desired version runs and was verified.
pub const READY: &str = "Ready";
/// True while the operator works towards the spec.
pub const RECONCILING: &str = "Reconciling";
/// True when the operator waits for a person.
pub const STALLED: &str = "Stalled";
/// True while the attempt keeps Memoria's writers stopped.
pub const INGESTION_STOPPED: &str = "IngestionStopped";

/// True while the attempt waits for a MemoriaDecision.
pub const AWAITING_DECISION: &str = "AwaitingDecision";

/// True while the attempt holds: it waits without having failed.
pub const HELD: &str = "Held";

/// Reasons: CamelCase, stable, one for each thing that a person would do differently.
pub mod reason {
    /// The running version is the desired one; nothing to do.
    pub const ADOPTED: &str = "Adopted";
    pub const PROGRESSING: &str = "Progressing";
    pub const SUSPENDED: &str = "Suspended";
    /// The attempt waits for fresh data of a check; it goes on by itself.
    pub const HELD: &str = "Held";
    /// A hold is past its deadline and writers stay stopped.
    pub const HOLD_EXPIRED: &str = "HoldExpired";
    pub const PLAN_READY: &str = "PlanReady";
    pub const RELEASE_SUCCEEDED: &str = "ReleaseSucceeded";
    pub const PREFLIGHT_FAILED: &str = "PreFlightFailed";
    /// A check had no usable answer; the operator holds.
    pub const INCONCLUSIVE: &str = "Inconclusive";
    /// The attempt failed before the image moved; what ran before runs again.
    pub const RESUMED: &str = "Resumed";
    /// The attempt failed after the image moved; writers stay stopped, both copies of the data are kept.
    pub const HALTED: &str = "Halted";
    /// The attempt failed after ingestion was back; the new version keeps running.
    pub const UNVERIFIED: &str = "Unverified";
    pub const ABORTED: &str = "Aborted";
    /// The prior images and the snapshot are back, proved.
    pub const ROLLED_BACK: &str = "RolledBack";
    /// Neither forward nor back: writers stay stopped, both copies of the data are kept.
    pub const ROLLBACK_FAILED: &str = "RollbackFailed";
    /// The way back would set rows aside beyond the budget.
    pub const DATA_LOSS_OVER_BUDGET: &str = "DataLossOverBudget";
    /// A marker of an attempt was found whose journal is gone.
    pub const JOURNAL_LOST: &str = "JournalLost";
    /// The running image is not the one last recorded, and no attempt of ours moved it.
    pub const UNMANAGED_IMAGE_CHANGE: &str = "UnmanagedImageChange";
    /// The desired version is older than the running one.
    pub const DOWNGRADE_UNSUPPORTED: &str = "DowngradeUnsupported";
    /// Another release already owns a target or worker.
    pub const TARGET_CLAIMED: &str = "TargetClaimed";
    /// The spec refers to something that does not exist or cannot be used.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The journal was written by a newer operator.
    pub const NEEDS_NEWER_OPERATOR: &str = "NeedsNewerOperator";
}
