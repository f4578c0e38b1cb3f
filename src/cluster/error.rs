//! Why the Kubernetes API did not do what was asked: what was tried, on which object, whose fault it is, what to do.

use std::{error::Error, time::Duration};

use kube::core::{Status, response::StatusCause};

use crate::{
    api::upgrade::Category,
    commands::{self, Command},
};

/// At most this much of a server's message is kept, in bytes: it goes into conditions and events.
const MAX_CAUSE: usize = 700;

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not {doing} {object}: {cause}; {next}")]
pub struct ClusterError {
    pub kind: Kind,
    /// A verb phrase, e.g. `set the image of`.
    pub doing: &'static str,
    /// E.g. `deployment/memoria`.
    pub object: String,
    /// What the server or the connection said, without Debug text.
    pub cause: String,
    /// What to do.
    pub next: String,
}

/// What kind of failure it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The object is no longer the one that was observed: observe again.
    Stale,
    /// Another field manager holds the fields that mark a workload as owned.
    Claimed { by: String },
    /// An object with our name exists that we did not make.
    Foreign,
    /// Authorization, quota, admission policy or validation refused it.
    Refused,
    /// The object, its namespace or its kind does not exist.
    Missing,
    /// The namespace is being deleted: nothing new can be made in it.
    NamespaceEnding,
    /// No answer, or a server's own failure.
    Unreachable,
    /// We asked for something that makes no sense.
    Malformed,
}

impl ClusterError {
    /// Whose fault it is.
    pub fn category(&self) -> Category {
        match self.kind {
            Kind::Stale | Kind::Claimed { .. } | Kind::Foreign => Category::Conflict,
            Kind::Refused | Kind::Missing | Kind::NamespaceEnding => Category::Environment,
            Kind::Unreachable => Category::Transient,
            Kind::Malformed => Category::Bug,
        }
    }

    /// CamelCase, for conditions and the journal.
    pub fn reason(&self) -> &'static str {
        match self.kind {
            Kind::Stale => "ObservationOutdated",
            Kind::Claimed { .. } => crate::api::conditions::reason::TARGET_CLAIMED,
            Kind::Foreign => "ForeignObject",
            Kind::Refused => "RequestRefused",
            Kind::Missing => "ObjectMissing",
            Kind::NamespaceEnding => "NamespaceTerminating",
            Kind::Unreachable => "ApiUnavailable",
            Kind::Malformed => "RequestMalformed",
        }
    }

    /// Whether observing again and deciding anew is the whole answer: nobody needs to hear of it.
    pub fn is_settled_by_observing_again(&self) -> bool {
        matches!(self.kind, Kind::Stale | Kind::Unreachable)
    }

    pub(crate) fn is_missing(&self) -> bool {
        self.kind == Kind::Missing
    }

    /// The same with the namespace in the commands that it names: whoever reads them may be in another one.
    #[must_use]
    pub fn in_namespace(self, namespace: &str) -> Self {
        Self { next: commands::in_namespace(&self.next, namespace), ..self }
    }

    /// An object of ours by name, but not by content.
    pub(crate) fn foreign(doing: &'static str, object: String, cause: String) -> Self {
        let show = Command::Show { object: &object };
        let next = format!("look at it ({show}) and delete or rename it if it is not needed");
        Self { kind: Kind::Foreign, doing, object, cause, next }
    }

    pub(crate) fn stale(doing: &'static str, object: String, cause: String) -> Self {
        Self { kind: Kind::Stale, doing, object, cause, next: AGAIN.to_owned() }
    }

    pub(crate) fn missing(doing: &'static str, object: String, next: String) -> Self {
        Self { kind: Kind::Missing, doing, object, cause: "it does not exist".to_owned(), next }
    }

    pub(crate) fn malformed(doing: &'static str, object: String, cause: String) -> Self {
        Self { kind: Kind::Malformed, doing, object, cause, next: BUG.to_owned() }
    }

    pub(crate) fn timeout(doing: &'static str, object: String, limit: Duration) -> Self {
        let cause = format!("no answer within {} s", limit.as_secs());
        Self { kind: Kind::Unreachable, doing, object, cause, next: RETRIED.to_owned() }
    }

    /// Something on this side of the connection.
    pub(crate) fn local(doing: &'static str, object: &str, error: &dyn Error) -> Self {
        Self {
            kind: Kind::Refused,
            doing,
            object: object.to_owned(),
            cause: chain(error),
            next: "check KUBECONFIG, or the pod's ServiceAccount when running in a cluster".to_owned(),
        }
    }

    pub(crate) fn from_kube(doing: &'static str, object: String, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::from_status(doing, object, status),
            kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) | kube::Error::HttpError(_) => {
                Self { kind: Kind::Malformed, doing, object, cause: chain(error), next: BUG.to_owned() }
            }
            _ => Self { kind: Kind::Unreachable, doing, object, cause: chain(error), next: RETRIED.to_owned() },
        }
    }

    pub(crate) fn from_status(doing: &'static str, object: String, status: &Status) -> Self {
        let causes = status.details.as_ref().map(|d| d.causes.as_slice()).unwrap_or_default();
        let cause = cut(if status.message.is_empty() { &status.reason } else { &status.message }, MAX_CAUSE);
        let (kind, next) = if let Some(by) = causes.iter().find_map(other_manager) {
            let next = format!(
                "another release or tool ({by}) owns it; let one release name it, or remove the mark of one that is \
                 gone: {}",
                Command::ForgetOwner { workload: &object }
            );
            (Kind::Claimed { by }, next)
        } else if causes.iter().any(|c| c.reason == "NamespaceTerminating") {
            (Kind::NamespaceEnding, "nothing: the namespace is being deleted".to_owned())
        } else if status.is_already_exists() {
            (Kind::Foreign, format!("look at it: {}", Command::Show { object: &object }))
        } else if status.is_conflict() || causes.iter().any(|c| c.field == "metadata.uid") {
            // The UID of a patch is a precondition; the server calls another one an invalid change.
            (Kind::Stale, AGAIN.to_owned())
        } else if status.is_not_found() || status.code == 404 {
            // A kind that is not served is answered without a Status, in plain text.
            (Kind::Missing, "create it again, or take it out of the release".to_owned())
        } else if status.is_forbidden() || status.is_invalid() || status.code == 401 {
            (Kind::Refused, way_out(status).to_owned())
        } else if matches!(status.code, 400 | 405 | 406 | 413 | 415) {
            (Kind::Malformed, BUG.to_owned())
        } else {
            (Kind::Unreachable, RETRIED.to_owned())
        };
        Self { kind, doing, object, cause, next }
    }
}

const AGAIN: &str = "the operator observes again and decides anew";
const RETRIED: &str = "the operator tries again";
const BUG: &str = "this is a fault of the operator: please report it";

/// Who holds a field, from the cause of a server-side apply conflict: `conflict with "<manager>" using apps/v1 …`.
fn other_manager(cause: &StatusCause) -> Option<String> {
    if cause.reason != "FieldManagerConflict" {
        return None;
    }
    Some(cause.message.split('"').nth(1).unwrap_or("unknown manager").to_owned())
}

/// What a person can do about a refusal, told from the server's own words.
fn way_out(status: &Status) -> &'static str {
    let said = &status.message;
    if status.code == 401 {
        "check the operator's ServiceAccount token or kubeconfig"
    } else if said.contains("cannot ") && said.contains(" resource ") {
        "grant the operator's ServiceAccount that verb on that resource in this namespace"
    } else if said.contains("exceeded quota")
        || said.contains("must specify limits")
        || said.contains("must specify requests")
    {
        "raise the ResourceQuota, or set spec.jobs.resources within it"
    } else if said.contains(" usage per ") {
        "change the namespace's LimitRange, or set spec.jobs.resources within it"
    } else if said.contains("violates PodSecurity") {
        "allow it in the namespace's pod-security label, or correct the workload's security context or spec.jobs.securityContext"
    } else if said.contains("ValidatingAdmissionPolicy")
        || said.contains("admission webhook")
        || said.contains("denied the request")
    {
        "change the admission policy named in the message, or exempt the operator's ServiceAccount"
    } else if status.is_invalid() {
        "correct the field named in the message"
    } else {
        "remove what the message names"
    }
}

/// An error with its causes, outermost first.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let inner = cause.to_string();
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        source = cause.source();
    }
    cut(&text, MAX_CAUSE)
}

/// At most `limit` bytes of a text, cut between characters, with an ellipsis where something is missing.
pub(crate) fn cut(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(limit.saturating_sub('…'.len_utf8()));
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use kube::core::{
        Status,
        response::{StatusCause, StatusDetails},
    };

    use super::{ClusterError, Kind, cut};
    use crate::api::upgrade::Category;

    fn status(code: u16, reason: &str, message: &str, causes: Vec<StatusCause>) -> Status {
        Status::failure(message, reason).with_code(code).with_details(StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes,
            retry_after_seconds: 0,
        })
    }

    fn seen(status: &Status) -> ClusterError {
        ClusterError::from_status("mark", "deployment/memoria".to_owned(), status)
    }

    #[test]
    fn a_claim_by_another_manager_names_it_and_the_command_to_lift_it() {
        let cause = StatusCause {
            reason: "FieldManagerConflict".to_owned(),
            message: "conflict with \"memoria-operator-7f3a\" using apps/v1".to_owned(),
            field: ".metadata.annotations.memoria.arca.run/owner".to_owned(),
        };
        let error = seen(&status(409, "Conflict", "Apply failed with 1 conflict", vec![cause]));
        assert_eq!(error.kind, Kind::Claimed { by: "memoria-operator-7f3a".to_owned() });
        assert_eq!((error.category(), error.reason()), (Category::Conflict, "TargetClaimed"));
        let text = error.to_string();
        assert!(
            text.contains("memoria-operator-7f3a")
                && text.contains("kubectl annotate deployment/memoria memoria.arca.run/owner-"),
            "{text}"
        );
    }

    #[test]
    fn each_answer_has_its_kind_and_category() {
        for (code, reason, kind, category) in [
            (409, "Conflict", Kind::Stale, Category::Conflict),
            (409, "AlreadyExists", Kind::Foreign, Category::Conflict),
            (404, "NotFound", Kind::Missing, Category::Environment),
            (404, "Failed to parse error data", Kind::Missing, Category::Environment),
            (403, "Forbidden", Kind::Refused, Category::Environment),
            (422, "Invalid", Kind::Refused, Category::Environment),
            (401, "Unauthorized", Kind::Refused, Category::Environment),
            (400, "BadRequest", Kind::Malformed, Category::Bug),
            (429, "TooManyRequests", Kind::Unreachable, Category::Transient),
            (500, "InternalError", Kind::Unreachable, Category::Transient),
            (503, "ServiceUnavailable", Kind::Unreachable, Category::Transient),
        ] {
            let error = seen(&status(code, reason, "said", vec![]));
            assert_eq!((error.kind.clone(), error.category()), (kind, category), "{code} {reason}");
        }
    }

    #[test]
    fn another_object_of_the_same_name_is_an_outdated_observation() {
        let cause = StatusCause {
            reason: "FieldValueInvalid".to_owned(),
            message: "field is immutable".to_owned(),
            field: "metadata.uid".to_owned(),
        };
        assert_eq!(seen(&status(422, "Invalid", "metadata.uid: Invalid value", vec![cause])).kind, Kind::Stale);
    }

    #[test]
    fn a_namespace_that_ends_is_told_apart_from_a_missing_right() {
        let cause =
            StatusCause { reason: "NamespaceTerminating".to_owned(), message: String::new(), field: String::new() };
        assert_eq!(
            seen(&status(403, "Forbidden", "because it is being terminated", vec![cause])).kind,
            Kind::NamespaceEnding
        );
        let rbac = "deployments.apps \"memoria\" is forbidden: User \"x\" cannot patch resource \"deployments\" in API group \"apps\"";
        assert!(seen(&status(403, "Forbidden", rbac, vec![])).next.contains("grant"));
        assert!(seen(&status(403, "Forbidden", "exceeded quota: small", vec![])).next.contains("ResourceQuota"));
        assert!(
            seen(&status(403, "Forbidden", "violates PodSecurity \"restricted:latest\"", vec![]))
                .next
                .contains("pod-security")
        );
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        assert_eq!(cut("äöü", 6), "äöü");
        assert_eq!(cut("äöüß", 7), "äö…");
    }
}
