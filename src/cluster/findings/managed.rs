//! Who else manages what an attempt changes, and what to tell them: GitOps tools put their own values back within
//! seconds, Helm at its next run, autoscalers never while a workload is at zero.

use super::{failed, passed};
use crate::{
    api::{
        marks::{GITOPS_IGNORES_ANNOTATION, KEDA_PAUSED_REPLICAS},
        release::{CheckResult, WorkerKind},
    },
    cluster::{
        adopt::{AdoptedWorkload, Tool},
        managers::{flux_leaves_alone, flux_source},
    },
    commands::Command,
};

/// One result for each workload that somebody else manages, and one for all others.
pub(super) fn of<'a>(
    ns: &str,
    all: &[&'a AdoptedWorkload],
    container: impl Fn(&AdoptedWorkload) -> Option<&'a str>,
) -> Vec<CheckResult> {
    let mut results: Vec<CheckResult> =
        all.iter().filter_map(|workload| one(ns, workload, container(workload))).collect();
    if results.is_empty() {
        results.push(passed(
            "managers",
            "no GitOps tool, Helm release or autoscaler manages what an attempt changes".into(),
        ));
    }
    results
}

fn one(ns: &str, workload: &AdoptedWorkload, container: Option<&str>) -> Option<CheckResult> {
    let reference = &workload.workload;
    let name = format!("managers-{}-{}", reference.kind.resource(), reference.name);
    let fields = Fields::of(workload, container);
    let mut tools: Vec<Tool> = workload.kept_by.clone();
    tools.extend(workload.image_managers.iter().chain(&workload.replica_managers).map(|manager| manager.tool));
    let has = |tool: Tool| tools.contains(&tool);
    let attested = fields.are_attested(workload);
    if has(Tool::ArgoCd) && !attested {
        return Some(failed(&name, argo(ns, workload, container, &fields)));
    }
    if has(Tool::Flux) && !attested && !flux_leaves_alone(&workload.meta) && !is_helm_release(workload) {
        return Some(failed(&name, flux(ns, workload, &fields)));
    }
    let mut notes = Vec::new();
    if (has(Tool::ArgoCd) || has(Tool::Flux)) && attested {
        notes.push(format!("its GitOps source is said to ignore {} ({GITOPS_IGNORES_ANNOTATION})", fields.words()));
    } else if has(Tool::Flux) && flux_leaves_alone(&workload.meta) {
        notes.push("Flux is told to leave it alone".to_owned());
    } else if is_helm_release(workload) {
        notes.push(format!(
            "it belongs to a HelmRelease of Flux: change no values in mid-upgrade, and where spec.driftDetection.mode is \
             enabled add to spec.driftDetection.ignore: {{paths: [{}], target: {{kind: {}, name: {}}}}}",
            fields.pointers(workload).join(", "),
            kind(workload),
            reference.name
        ));
    } else if has(Tool::Helm) {
        notes.push(format!(
            "it belongs to Helm release {}: run no helm upgrade in mid-upgrade, and name the new version in its values \
             afterwards, or the next helm upgrade goes back to the old one",
            helm_release(workload)
        ));
    }
    if let Some(hpa) = &workload.autoscaler {
        notes.push(format!(
            "horizontalpodautoscaler/{hpa} sets its replica count: it rests while that is 0, and the count of the moment of \
             Quiesce comes back"
        ));
    }
    (!notes.is_empty()).then(|| passed(&name, format!("{reference}: {}", notes.join("; "))))
}

/// What an attempt changes of one workload.
struct Fields {
    image: bool,
    kind: WorkerKind,
}

impl Fields {
    fn of(workload: &AdoptedWorkload, container: Option<&str>) -> Self {
        Self { image: container.is_some(), kind: workload.workload.kind }
    }

    fn names(&self) -> Vec<&'static str> {
        let switch = match self.kind {
            WorkerKind::Deployment | WorkerKind::StatefulSet => "replicas",
            WorkerKind::CronJob | WorkerKind::Job => "suspend",
            WorkerKind::ScaledObject => "paused-replicas",
        };
        if self.image { vec!["image", switch] } else { vec![switch] }
    }

    fn words(&self) -> String {
        self.names().join(" and ")
    }

    /// Whether a person said on the object, best in Git, that its source ignores them.
    fn are_attested(&self, workload: &AdoptedWorkload) -> bool {
        let said = workload.meta.annotations.as_ref().and_then(|a| a.get(GITOPS_IGNORES_ANNOTATION));
        let said: Vec<&str> = said.map(|s| s.split(',').map(str::trim).collect()).unwrap_or_default();
        self.names().iter().all(|field| said.contains(field))
    }

    /// JSON Pointers. A container has no name there, only its place.
    fn pointers(&self, workload: &AdoptedWorkload) -> Vec<String> {
        let containers = workload.template.spec.iter().flat_map(|spec| &spec.containers);
        let image = self.image.then(|| {
            let place = containers.zip(0..).find(|(c, _)| c.image.as_deref() == Some(&workload.seen.image));
            format!("/spec/template/spec/containers/{}/image", place.map_or(0, |(_, place)| place))
        });
        image.into_iter().chain([self.switch_pointer()]).collect()
    }

    fn switch_pointer(&self) -> String {
        match self.kind {
            WorkerKind::Deployment | WorkerKind::StatefulSet => "/spec/replicas".to_owned(),
            WorkerKind::CronJob | WorkerKind::Job => "/spec/suspend".to_owned(),
            WorkerKind::ScaledObject => format!("/metadata/annotations/{}", KEDA_PAUSED_REPLICAS.replace('/', "~1")),
        }
    }

    fn jq(&self, container: Option<&str>) -> Vec<String> {
        let image =
            container.map(|name| format!(".spec.template.spec.containers[] | select(.name == \"{name}\") | .image"));
        let switch = match self.kind {
            WorkerKind::Deployment | WorkerKind::StatefulSet => ".spec.replicas".to_owned(),
            WorkerKind::CronJob | WorkerKind::Job => ".spec.suspend".to_owned(),
            WorkerKind::ScaledObject => format!(".metadata.annotations[\"{KEDA_PAUSED_REPLICAS}\"]"),
        };
        image.into_iter().chain([switch]).collect()
    }
}

fn kind(workload: &AdoptedWorkload) -> String {
    crate::cluster::worker::resource(workload.workload.kind).kind
}

fn group(workload: &AdoptedWorkload) -> String {
    crate::cluster::worker::resource(workload.workload.kind).group
}

fn attest(ns: &str, workload: &AdoptedWorkload, fields: &Fields) -> String {
    let (workload, fields) = (workload.workload.to_string(), fields.names().join(","));
    let say = Command::IgnoredByGitOps { workload: &workload, fields: &fields }.in_namespace(ns);
    format!("Then say so on the object, in Git, or: {say}")
}

fn argo(ns: &str, workload: &AdoptedWorkload, container: Option<&str>, fields: &Fields) -> String {
    let paths: Vec<_> = fields.jq(container).iter().map(|path| format!("    - '{path}'\n")).collect();
    format!(
        "Argo CD keeps {} of {} and puts them back in mid-upgrade. Add to its Application:\n\
         spec:\n  syncPolicy:\n    syncOptions: [RespectIgnoreDifferences=true]\n  ignoreDifferences:\n  \
         - group: {}\n    kind: {}\n    name: {}\n    namespace: {ns}\n    jqPathExpressions:\n{}{}",
        fields.words(),
        workload.workload,
        group(workload),
        kind(workload),
        workload.workload.name,
        paths.concat(),
        attest(ns, workload, fields)
    )
}

fn flux(ns: &str, workload: &AdoptedWorkload, fields: &Fields) -> String {
    let (source_ns, source) = flux_source(&workload.meta)
        .unwrap_or_else(|| ("<its namespace>".to_owned(), "<the Kustomization that applies it>".to_owned()));
    format!(
        "Flux keeps {} of {} and puts them back in mid-upgrade. Suspend it until the upgrade has ended: flux suspend \
         kustomization {source} -n {source_ns}; or let it ignore them for good, where Flux knows spec.ignore of \
         Kustomizations, by adding to it:\nspec:\n  ignore:\n  - paths: [{}]\n    target: {{kind: {}, name: {}}}\n\
         with an older Flux, annotate the object in Git with kustomize.toolkit.fluxcd.io/ssa: IfNotPresent (Flux then \
         makes it, and changes nothing of it any more). {}",
        fields.words(),
        workload.workload,
        fields.pointers(workload).join(", "),
        kind(workload),
        workload.workload.name,
        attest(ns, workload, fields)
    )
}

/// Helm's releases are put back by Flux only where drift detection is switched on.
fn is_helm_release(workload: &AdoptedWorkload) -> bool {
    workload.meta.labels.iter().flatten().any(|(key, _)| key.starts_with("helm.toolkit.fluxcd.io/"))
}

fn helm_release(workload: &AdoptedWorkload) -> String {
    let annotation = |key: &str| workload.meta.annotations.as_ref().and_then(|a| a.get(key)).cloned();
    annotation("meta.helm.sh/release-name").unwrap_or_else(|| workload.meta.name.clone().unwrap_or_default())
}
