//! `MemoriaDecision`: one human act, immutable.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// What a person decides about an attempt.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "memoria.arca.run",
    version = "v1alpha1",
    kind = "MemoriaDecision",
    plural = "memoriadecisions",
    shortname = "mdec",
    namespaced,
    doc = "One human act on an attempt. Immutable: create another to decide again.",
    printcolumn(name = "Release", type_ = "string", json_path = ".spec.releaseName"),
    printcolumn(name = "Action", type_ = "string", json_path = ".spec.action"),
    printcolumn(name = "Attempt", type_ = "string", json_path = ".spec.attempt"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.decidedBy"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = ("self == oldSelf", "a decision cannot be edited; create another"))]
#[serde(rename_all = "camelCase")]
pub struct MemoriaDecisionSpec {
    /// The MemoriaRelease in this namespace that is decided about. Example: `memoria`.
    #[schemars(length(min = 1, max = 32))]
    pub release_name: String,
    /// What is to be done.
    pub action: DecisionAction,
    /// The attempt (a MemoriaUpgrade) that the decision is bound to. Example: `memoria-12`.
    #[schemars(length(min = 1, max = 63))]
    pub attempt: String,
    /// Why; auditors read it. Example: `the vendor withdrew 1.0.0`.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = ("size(self) > 0", "say why; auditors read it"))]
    pub reason: String,
    /// Who decides: the user's name as the API server knows it (`kubectl auth whoami`). Where the chart's policy is in
    /// force (`admission.decidedBy`), another name than the author's is refused; elsewhere it is a claim.
    /// Default: nobody is named. Example: `ben@arca.run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub decided_by: Option<String>,
}

/// The acts that a person can order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum DecisionAction {
    /// End the attempt: before the image moved, what ran before is brought back; after it, image and data are taken
    /// back. An attempt that ended with writers stopped is released: its marks go, nothing else is touched.
    Abort,
    /// Take image and data of an ended attempt back to before it. Rows written since count against the budget.
    Rollback,
    /// Try once more under the same plan, after the cause is mended: a check that holds is asked now, a way back that
    /// failed begins anew, and an attempt that ended as Halted goes on with the phase that failed. It is refused, with
    /// what to do instead, where that could run migrations twice or rest on data that is not proved.
    Retry,
    /// Let the way back go on although rows that were written since Start will be set aside.
    AcceptDataLoss,
    /// Let images be tried again that this attempt was taken back for.
    AcknowledgeRejection,
}
