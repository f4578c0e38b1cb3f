//! Images that were taken back for their own fault are not tried again until a person says so. What failed for another
//! reason (a registry, a full volume) rejects nothing.

use std::collections::BTreeMap;

use kube::ResourceExt as _;

use super::{Question, judge, target::Wanted};
use crate::{
    api::{decision::DecisionAction, release::CheckResult},
    commands::Command,
    upgrade::image::digest_of,
};

const NAME: &str = "rejected-images";

/// A failed check when exactly these images were taken back before; `None` also while a digest is still unknown.
pub(super) fn check(
    question: &Question<'_>,
    wanted: &[Wanted<'_>],
    digests: &BTreeMap<String, String>,
) -> Option<CheckResult> {
    let release = question.release;
    let pinned: Option<Vec<_>> = wanted.iter().map(|wanted| wanted.pinned(digests)).collect();
    let mut now: Vec<_> = pinned?.iter().filter_map(|image| digest_of(image)).map(str::to_owned).collect();
    now.sort();
    let rejected = release.status.as_ref()?.rejected.iter().rev().find(|rejected| rejected.digests == now)?;
    if question.acknowledged.contains(&rejected.attempt) {
        return None;
    }
    let namespace = release.namespace().unwrap_or_default();
    let name = release.name_any();
    let action = DecisionAction::AcknowledgeRejection;
    let acknowledge = Command::Decide { release: &name, attempt: &rejected.attempt, action }.in_namespace(&namespace);
    let again = Command::AskAgain { release: &name }.in_namespace(&namespace);
    Some(judge::failed(
        NAME,
        format!(
            "these very images were taken back by attempt {} for their own fault ({}). Set another version; or, to try \
             them again: {acknowledge} && {again}",
            rejected.attempt, rejected.reason
        ),
    ))
}
