//! The CustomResourceDefinitions, the way `crds/` and the chart carry them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use super::{MemoriaDecision, MemoriaRelease, MemoriaUpgrade};

/// All kinds, in the order of their names.
pub fn all() -> [CustomResourceDefinition; 3] {
    let mut all = [MemoriaDecision::crd(), MemoriaRelease::crd(), MemoriaUpgrade::crd()];
    for crd in &mut all {
        for version in &mut crd.spec.versions {
            version.schema.iter_mut().filter_map(|s| s.open_api_v3_schema.as_mut()).for_each(no_nulls);
        }
    }
    all
}

/// The derived schema lets optional fields be null. Without that the API server drops a null as if the field were not
/// there, so that no stored object has one, and `has()` in a rule means what it says.
fn no_nulls(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    children(schema).into_iter().for_each(|(_, child)| no_nulls(child));
}

/// The schemas right below this one: properties by their names, `[]` for items and `*` for a map's values.
fn children(schema: &mut JSONSchemaProps) -> Vec<(&str, &mut JSONSchemaProps)> {
    let mut children: Vec<_> =
        schema.properties.iter_mut().flatten().map(|(name, child)| (name.as_str(), child)).collect();
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => children.push(("[]", items)),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => children.extend(items.iter_mut().map(|item| ("[]", item))),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        children.push(("*", values));
    }
    children
}

/// The name of a definition's file: its plural.
pub fn file_name(crd: &CustomResourceDefinition) -> String {
    format!("{}.yaml", crd.spec.names.plural)
}

/// One document with a line on top that says where it comes from.
pub fn to_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_saphyr::ser::Error> {
    let body = serde_saphyr::to_string(crd)?;
    Ok(format!("# Written by `memoria-operator crds --out crds`; change src/api instead.\n{body}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `see` with path, schema and whether the field is required, for every field of every kind.
    fn walk(see: &mut impl FnMut(&str, &mut JSONSchemaProps, bool)) {
        fn down(path: &str, schema: &mut JSONSchemaProps, see: &mut impl FnMut(&str, &mut JSONSchemaProps, bool)) {
            let required = schema.required.clone().unwrap_or_default();
            for (name, child) in children(schema) {
                let path = format!("{path}.{name}");
                let needed = required.iter().any(|r| r == name);
                see(&path, child, needed);
                down(&path, child, see);
            }
        }
        for mut crd in all() {
            let kind = crd.spec.names.kind.clone();
            let root = crd.spec.versions[0].schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()).unwrap();
            down(&kind, root, see);
        }
    }

    fn is_element(path: &str) -> bool {
        path.ends_with(".[]") || path.ends_with(".*")
    }

    fn described(schema: &JSONSchemaProps) -> String {
        schema.description.clone().unwrap_or_default()
    }

    #[test]
    fn every_field_says_what_it_is_for() {
        let mut bare = Vec::new();
        walk(&mut |path, schema, _| {
            let text = described(schema);
            let foreign = text.starts_with("Time is a wrapper") || text.starts_with("Condition contains");
            if !is_element(path) && (text.is_empty() || foreign) {
                bare.push(path.to_owned());
            }
        });
        assert_eq!(bare, Vec::<String>::new(), "give these a doc comment");
    }

    #[test]
    fn what_people_write_has_a_default_and_an_example() {
        let mut bare = Vec::new();
        walk(&mut |path, schema, required| {
            let text = described(schema);
            if !path.contains("Upgrade.") && path.contains(".spec.") && !is_element(path) {
                if !required && schema.default.is_none() && !text.contains("Default:") {
                    bare.push(format!("{path}: no default"));
                }
                let free_text = schema.type_.as_deref() == Some("string") && schema.enum_.is_none();
                if free_text && schema.default.is_none() && !text.contains("Example:") {
                    bare.push(format!("{path}: no example"));
                }
            }
        });
        assert_eq!(bare, Vec::<String>::new());
    }

    #[test]
    fn what_people_write_has_a_size() {
        let mut endless = Vec::new();
        walk(&mut |path, schema, _| {
            let bounded = match schema.type_.as_deref() {
                Some("string") => schema.enum_.is_some() || schema.format.is_some() || schema.max_length.is_some(),
                Some("array") => schema.max_items.is_some(),
                Some("object") => schema.additional_properties.is_none() || schema.max_properties.is_some(),
                _ => true,
            };
            if path.contains(".spec.") && !path.contains("Upgrade.") && !bounded {
                endless.push(path.to_owned());
            }
        });
        assert_eq!(endless, Vec::<String>::new());
    }

    #[test]
    fn lists_of_objects_in_the_spec_merge_by_key() {
        walk(&mut |path, schema, _| {
            let of_objects = children(schema).iter().any(|(n, c)| *n == "[]" && c.properties.is_some());
            if of_objects && path.contains("Release.spec.") && !path.ends_with("tolerations") {
                assert_eq!(schema.x_kubernetes_list_type.as_deref(), Some("map"), "{path}");
            }
        });
    }

    #[test]
    fn only_whole_objects_of_other_kinds_keep_unknown_fields() {
        let mut open = Vec::new();
        walk(&mut |path, schema, _| {
            if schema.x_kubernetes_preserve_unknown_fields == Some(true) {
                open.push(path.to_owned());
            }
        });
        assert_eq!(open, ["MemoriaUpgrade.spec.jobs.[].manifest", "MemoriaUpgrade.spec.targets.[].candidate"]);
    }

    #[test]
    fn nothing_is_null_and_nothing_is_a_boolean_of_yaml_1_1() {
        let booleans = ["y", "n", "yes", "no", "on", "off", "true", "false"];
        walk(&mut |path, schema, _| {
            assert_eq!(schema.nullable, None, "{path}");
            let name = path.rsplit('.').next().unwrap().to_lowercase();
            assert!(!booleans.contains(&name.as_str()), "{path}");
            for value in schema.enum_.iter().flatten() {
                let word = value.0.as_str().unwrap_or_default().to_lowercase();
                assert!(word == "true" || word == "false" || !booleans.contains(&word.as_str()), "{path}: {word}");
            }
        });
    }

    #[test]
    fn every_rule_says_what_to_do() {
        let mut seen = 0;
        walk(&mut |path, schema, _| {
            for rule in schema.x_kubernetes_validations.iter().flatten() {
                seen += 1;
                assert!(rule.message.as_deref().is_some_and(|m| m.len() > 20), "{path}: {}", rule.rule);
            }
        });
        assert!(seen > 15, "only {seen} rules found");
    }
}
