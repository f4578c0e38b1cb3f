//! The merge of Memoria's settings, by example and by property.

use proptest::prelude::*;

use super::{
    MergeError, Merged, Source, Texts, YamlError, merge, sha256,
    yaml::{self, Node, Scalar},
};

const OLD: &str = include_str!("../../../tests/memoria/versions/0.9.0.config.example.yaml");
const NEW: &str = include_str!("../../../tests/memoria/app/config.example.yaml");
const OVERRIDES: &str = "verbose: true\nmemory:\n  namespace: production\n  team_mode: true\n";
/// As an installation has it: flow style, no comments.
const OUTPUT: &str = "
debug: false
verbose: true
database: {migration_auto: false, pool: 5}
agents: {default_model: local-small, max_parallel: 4, tools: [search, translate]}
memory: {namespace: production, team_mode: true, sovereign_ingest: false}
integrations: {litellm_enabled: false}
policy:
  retention_rules:
    - {name: conversations, category: conversation, keep_days: 365, escalate_to: privacy-office}
";

fn texts() -> Texts<'static> {
    Texts { baseline: NEW, prior_baseline: Some(OLD), output: OUTPUT, overrides: Some(OVERRIDES) }
}

fn yaml_error(result: Result<Merged, MergeError>) -> (Source, YamlError) {
    match result {
        Err(MergeError::Yaml { source_of, error }) => (source_of, error),
        other => panic!("{other:?}"),
    }
}

#[test]
fn new_defaults_are_adopted_overrides_win_and_the_database_stays() {
    let merged = merge(&texts()).unwrap();
    insta::assert_snapshot!(merged.text, @r"
    debug: false
    verbose: true
    database:
      migration_auto: false
      pool: 5
    agents:
      default_model: local-medium
      max_parallel: 8
      tools:
        - search
        - summarise
    memory:
      namespace: production
      team_mode: true
      sovereign_ingest: true
    integrations:
      litellm_enabled: false
    policy:
      retention_rules:
        - name: conversations
          category: conversation
          keep_days: 365
          escalate_to: privacy-office
        - name: contested
          category: contested
          keep_days: 3650
          escalate_to: legal-hold
    ");
    let report = merged.report;
    assert_eq!(
        report.adopted,
        [
            "agents.default_model",
            "agents.max_parallel",
            "agents.tools",
            "memory.sovereign_ingest",
            "policy.retention_rules"
        ]
    );
    assert_eq!(report.kept, ["verbose", "memory.namespace", "memory.team_mode"]);
    assert!(report.obsolete.is_empty() && report.lost.is_empty(), "{report:?}");
}

#[test]
fn an_override_without_a_default_stays_and_is_called_obsolete() {
    let overrides = "memory: {team_mode: true, gone: 1}\nnever: {heard: {of: x}}\nproviders: {own: x}\n";
    let baseline = format!("{NEW}\nproviders: {{}}\n");
    let texts = Texts { baseline: &baseline, prior_baseline: Some(OLD), output: OLD, overrides: Some(overrides) };
    let merged = merge(&texts).unwrap();
    assert_eq!(merged.report.obsolete, ["memory.gone", "never.heard.of"]);
    // Below an empty mapping any key is at home.
    assert_eq!(merged.report.kept, ["memory.team_mode", "providers.own"]);
    assert!(merged.text.contains("  gone: 1\n") && merged.text.contains("    of: x\n"), "{}", merged.text);
}

#[test]
fn a_setting_that_nobody_explains_is_not_lost_unseen() {
    let output = OUTPUT.replace("max_parallel: 4", "max_parallel: 6").replace("debug: false", "extra: {a: 1}");
    let merged = merge(&Texts { output: &output, ..texts() }).unwrap();
    assert_eq!(merged.report.lost, ["extra.a", "agents.max_parallel"]);
    // What the new defaults say as well is not lost.
    let output = OUTPUT.replace("max_parallel: 4", "max_parallel: 8");
    assert!(merge(&Texts { output: &output, ..texts() }).unwrap().report.lost.is_empty());
    let unknown = Texts { output: &output, prior_baseline: None, ..texts() };
    assert!(merge(&unknown).unwrap().report.lost.is_empty());
}

#[test]
fn scalars_keep_the_form_that_gives_them_their_meaning() {
    let overrides = "a: yes\nb: 'yes'\nc: 010\nd: \"x\\ty\\u2028z\"\ne: |\n  one\n  two: #3\nf:\ng: 12:30\nh: []\n\"i j\": [[1, [2]], {k: v}]\n";
    let merged = merge(&Texts { baseline: "a: no\n", prior_baseline: None, output: "", overrides: Some(overrides) });
    insta::assert_snapshot!(merged.unwrap().text, @r#"
    a: yes
    b: "yes"
    c: 010
    d: "x\ty\u2028z"
    e: "one\ntwo: #3\n"
    f: ~
    g: 12:30
    h: []
    "i j":
      - - 1
        - - 2
      - k: v
    "#);
}

#[test]
fn what_cannot_be_merged_names_the_text_and_the_line_and_no_value() {
    let cases = [
        ("a: 1\nb: 2\na: secret\n", YamlError::DuplicateKey { line: 3, key: "a".into() }),
        ("a: &x secret\nb: *x\n", YamlError::Anchor { line: 1 }),
        ("a: !!str secret\n", YamlError::Tag { line: 1 }),
        ("a:\n  <<: {b: secret}\n", YamlError::Tag { line: 2 }),
        ("? [secret]\n: 1\n", YamlError::Key { line: 1 }),
        ("- secret\n", YamlError::NotAMap { line: 1 }),
        ("secret\n", YamlError::NotAMap { line: 1 }),
        ("a: 1\n---\nb: secret\n", YamlError::Documents { line: 2 }),
    ];
    for (text, expected) in cases {
        let (source, error) = yaml_error(merge(&Texts { overrides: Some(text), ..texts() }));
        assert_eq!((source, &error), (Source::Overrides, &expected));
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    let (source, error) = yaml_error(merge(&Texts { output: "a: b\n  c: secret\n", ..texts() }));
    assert!(matches!((source, &error), (Source::Output, YamlError::Syntax { line: 2, .. })), "{error}");
}

#[test]
fn nothing_and_comments_alone_are_no_settings() {
    for text in ["", "# a\n", "---\n", "null\n", "{}\n"] {
        let merged = merge(&Texts { baseline: "a: 1\n", prior_baseline: None, output: "", overrides: Some(text) });
        assert_eq!(merged.unwrap().text, "a: 1\n", "{text:?}");
    }
    assert_eq!(merge(&Texts { baseline: "", prior_baseline: None, output: "", overrides: None }).unwrap().text, "{}\n");
    assert_eq!(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

fn scalar() -> impl Strategy<Value = Scalar> {
    prop_oneof![
        "[a-z]{1,6}|true|off|-?[0-9]{1,4}|[0-9]\\.[0-9]|~".prop_map(|text| Scalar { text, plain: true }),
        "[ -~äß\\n\\t\u{85}\u{2028}\u{feff}'\"#:]{0,12}".prop_map(|text| Scalar { text, plain: false }),
    ]
}

fn map(value: impl Strategy<Value = Node>) -> impl Strategy<Value = Node> {
    let key = prop_oneof![Just("database".to_owned()), "[a-e]{1,2}", "[ -~]{1,4}"];
    proptest::collection::btree_map(key, value, 0..5).prop_map(|entries| {
        Node::Map(entries.into_iter().map(|(key, value)| (Scalar { text: key, plain: false }, value)).collect())
    })
}

fn document() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![scalar().prop_map(Node::Scalar), Just(Node::List(vec![])), Just(Node::Map(vec![]))];
    let node = leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![proptest::collection::vec(inner.clone(), 0..4).prop_map(Node::List), map(inner)]
    });
    map(node)
}

fn get<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    let Node::Map(entries) = node else { return None };
    entries.iter().find(|(known, _)| known.text == key).map(|(_, value)| value)
}

/// Everything that `above` says holds in `result`.
fn holds(above: &Node, result: &Node) -> bool {
    match (above, result) {
        (Node::Map(entries), Node::Map(_)) => {
            entries.iter().all(|(key, value)| get(result, &key.text).is_some_and(|there| holds(value, there)))
        }
        _ => above == result,
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(document in document()) {
        prop_assert_eq!(yaml::parse(&yaml::write(&document)).unwrap(), document);
    }

    #[test]
    fn merged_with_itself_it_is_itself(document in document()) {
        let text = yaml::write(&document);
        let merged = merge(&Texts { baseline: &text, prior_baseline: Some(&text), output: &text, overrides: Some(&text) }).unwrap();
        prop_assert_eq!(merged.text, text);
        prop_assert_eq!(merged.report, super::Report::default());
    }

    #[test]
    fn overrides_always_win(baseline in document(), output in document(), overrides in document()) {
        let [baseline, output, above] = [&baseline, &output, &overrides].map(yaml::write);
        let merged = merge(&Texts { baseline: &baseline, prior_baseline: None, output: &output, overrides: Some(&above) }).unwrap();
        let result = yaml::parse(&merged.text).unwrap();
        prop_assert!(holds(&overrides, &result), "{}", merged.text);
    }

    #[test]
    fn nothing_of_the_database_comes_from_the_defaults(baseline in document(), output in document()) {
        let texts = [&baseline, &output].map(yaml::write);
        let merged = merge(&Texts { baseline: &texts[0], prior_baseline: None, output: &texts[1], overrides: None }).unwrap();
        let result = yaml::parse(&merged.text).unwrap();
        prop_assert_eq!(get(&result, "database"), get(&output, "database"));
    }

    #[test]
    fn any_text_gives_a_merge_or_an_error(text in "[ -~\\n\\t]{0,80}") {
        let _ = merge(&Texts { baseline: &text, prior_baseline: Some(&text), output: &text, overrides: Some(&text) });
    }
}
