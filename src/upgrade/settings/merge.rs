//! The merge and its report.

use std::collections::HashMap;

use super::{
    MergeError, Source, Texts,
    yaml::{self, Node, Scalar},
};

/// The settings of the database: an installation's own, never a default.
const DATABASE: &str = "database";

/// The new settings and what became of the old ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    pub text: String,
    pub report: Report,
}

/// Key paths such as `memory.team_mode`, in the order of the documents. A list counts as one value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Defaults that are new or have another value than before.
    pub adopted: Vec<String>,
    /// Overrides that differ from the new default.
    pub kept: Vec<String>,
    /// Overrides that the new defaults have no key for; they stay.
    pub obsolete: Vec<String>,
    /// Settings of the current output that neither the prior defaults nor the overrides explain, and that would be lost.
    /// Always empty when the prior defaults are not known.
    pub lost: Vec<String>,
}

/// Merges: `baseline` without `database`, `database` of `output`, and `overrides` over both.
///
/// # Errors
/// [`MergeError`]
pub fn merge(texts: &Texts<'_>) -> Result<Merged, MergeError> {
    let read = |text: &str, source_of: Source| {
        yaml::parse(text).map_err(|error| MergeError::Yaml { source_of, error }).map(entries)
    };
    let baseline = read(texts.baseline, Source::Baseline)?;
    let prior = texts.prior_baseline.map(|text| read(text, Source::PriorBaseline)).transpose()?;
    let output = read(texts.output, Source::Output)?;
    let overrides = read(texts.overrides.unwrap_or_default(), Source::Overrides)?;

    let own_database = output.iter().find(|(key, _)| key.text == DATABASE);
    let mut result = Vec::with_capacity(baseline.len() + 1);
    for (key, value) in &baseline {
        match (key.text == DATABASE, own_database) {
            (false, _) => result.push((key.clone(), value.clone())),
            (true, Some(own)) => result.push(own.clone()),
            (true, None) => {}
        }
    }
    if let Some(own) = own_database
        && !result.iter().any(|(key, _)| key.text == DATABASE)
    {
        result.push(own.clone());
    }
    lay_over(&mut result, &overrides);

    let report = report(&baseline, prior.as_deref(), &output, &overrides, &result);
    let root = Node::Map(result);
    let text = yaml::write(&root);
    match yaml::parse(&text) {
        Ok(again) if same(&again, &root) => Ok(Merged { text, report }),
        _ => Err(MergeError::RoundTrip),
    }
}

type Entries = Vec<(Scalar, Node)>;

fn entries(root: Node) -> Entries {
    match root {
        Node::Map(entries) => entries,
        // The parser answers mappings only.
        Node::Scalar(_) | Node::List(_) => Vec::new(),
    }
}

/// Mappings merge, anything else is replaced; new keys come last.
fn lay_over(below: &mut Entries, above: &[(Scalar, Node)]) {
    let mut places: HashMap<String, usize> =
        below.iter().enumerate().map(|(at, (key, _))| (key.text.clone(), at)).collect();
    for (key, value) in above {
        match places.get(&key.text).and_then(|at| below.get_mut(*at)) {
            Some((_, Node::Map(known))) if matches!(value, Node::Map(_)) => {
                if let Node::Map(value) = value {
                    lay_over(known, value);
                }
            }
            Some((_, known)) => *known = value.clone(),
            None => {
                places.insert(key.text.clone(), below.len());
                below.push((key.clone(), value.clone()));
            }
        }
    }
}

fn report(
    baseline: &[(Scalar, Node)],
    prior: Option<&[(Scalar, Node)]>,
    output: &[(Scalar, Node)],
    overrides: &[(Scalar, Node)],
    result: &[(Scalar, Node)],
) -> Report {
    let (mut report, new) = (Report::default(), leaves(result));
    let (defaults, overridden, now) = (leaves(baseline), leaves(overrides), leaves(output));
    let before = prior.map(leaves);
    let is_database = |path: &[String]| path.first().is_some_and(|first| first == DATABASE);
    for (path, value) in &defaults.list {
        let is_ours = is_database(path) || overridden.covers(path);
        // Where the prior image does not tell its defaults, what ran is what there is to compare with.
        let known = before.as_ref().unwrap_or(&now).get(path);
        if !is_ours && !known.is_some_and(|known| same(known, value)) {
            report.adopted.push(shown(path));
        }
    }
    for (path, value) in &overridden.list {
        match defaults.get(path) {
            Some(default) if same(default, value) => {}
            Some(_) => report.kept.push(shown(path)),
            None if defaults.covers(path) || defaults.is_map(path) => report.kept.push(shown(path)),
            None => report.obsolete.push(shown(path)),
        }
    }
    if let Some(before) = &before {
        for (path, value) in &now.list {
            let survives = new.get(path).is_some_and(|new| same(new, value));
            let was_default = before.get(path).is_some_and(|default| same(default, value));
            if !survives && !was_default && !overridden.covers(path) && !overridden.is_map(path) {
                report.lost.push(shown(path));
            }
        }
    }
    report
}

/// All that is no mapping with keys, by its path.
struct Leaves<'a> {
    list: Vec<(Vec<String>, &'a Node)>,
    places: HashMap<Vec<String>, usize>,
    maps: HashMap<Vec<String>, ()>,
}

impl Leaves<'_> {
    fn get(&self, path: &[String]) -> Option<&Node> {
        self.places.get(path).and_then(|at| self.list.get(*at)).map(|(_, node)| *node)
    }

    /// Whether the path is a leaf here, or lies below one.
    fn covers(&self, path: &[String]) -> bool {
        (1..=path.len()).any(|end| path.get(..end).is_some_and(|path| self.places.contains_key(path)))
    }

    fn is_map(&self, path: &[String]) -> bool {
        self.maps.contains_key(path)
    }
}

fn leaves(root: &[(Scalar, Node)]) -> Leaves<'_> {
    fn walk<'a>(entries: &'a [(Scalar, Node)], path: &mut Vec<String>, leaves: &mut Leaves<'a>) {
        for (key, value) in entries {
            path.push(key.text.clone());
            match value {
                Node::Map(inner) if !inner.is_empty() => {
                    leaves.maps.insert(path.clone(), ());
                    walk(inner, path, leaves);
                }
                leaf => {
                    leaves.places.insert(path.clone(), leaves.list.len());
                    leaves.list.push((path.clone(), leaf));
                }
            }
            path.pop();
        }
    }
    let mut leaves = Leaves { list: Vec::new(), places: HashMap::new(), maps: HashMap::new() };
    walk(root, &mut Vec::new(), &mut leaves);
    leaves
}

/// A path on one line, whatever stands in its keys.
fn shown(path: &[String]) -> String {
    let path = path.join(".").replace(|c: char| c.is_control(), "?");
    match path.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", path.get(..end).unwrap_or_default()),
        None => path,
    }
}

/// Whether two nodes mean the same; the order of keys does not matter.
fn same(a: &Node, b: &Node) -> bool {
    match (a, b) {
        (Node::Scalar(a), Node::Scalar(b)) => a.same(b),
        (Node::List(a), Node::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Node::Map(a), Node::Map(b)) => {
            let known: HashMap<&str, &Node> = b.iter().map(|(key, value)| (key.text.as_str(), value)).collect();
            a.len() == b.len()
                && a.iter().all(|(key, value)| known.get(key.text.as_str()).is_some_and(|other| same(value, other)))
        }
        _ => false,
    }
}
