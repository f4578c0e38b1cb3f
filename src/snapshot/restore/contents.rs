//! A dump's table of contents: what of it is restored into a live database, and what is left alone there.

use std::collections::BTreeSet;

use crate::snapshot::{
    error::{Error, Result},
    schema::Schema,
};

/// Kinds of entries that are dropped with the objects in scope and come back from the dump. A kind whose name begins with
/// another's stands before it.
const RESTORED: &[&str] = &[
    "AGGREGATE",
    "CHECK CONSTRAINT",
    "COMMENT",
    "CONSTRAINT",
    "DEFAULT",
    "DOMAIN",
    "FK CONSTRAINT",
    "FUNCTION",
    "INDEX ATTACH",
    "INDEX",
    "MATERIALIZED VIEW",
    "POLICY",
    "PROCEDURE",
    "PUBLICATION TABLES IN SCHEMA",
    "PUBLICATION TABLE",
    "ROW SECURITY",
    "RULE",
    "SEQUENCE OWNED BY",
    "SEQUENCE SET",
    "SEQUENCE",
    "STATISTICS",
    "TABLE ATTACH",
    "TABLE DATA",
    "TABLE",
    "TRIGGER",
    "TYPE",
    "VIEW",
];

/// Kinds that come after everything else: grants may take rights away from the owner himself.
const LAST: &[&str] = &["ACL", "MATERIALIZED VIEW DATA"];

/// Kinds that no restore drops, and that it makes only where they are missing.
const WHERE_MISSING: &[&str] = &["EXTENSION", "PUBLICATION", "SCHEMA"];

/// Kinds that no restore drops or makes. One of them that needs an object in scope keeps that from being dropped.
const LEFT_ALONE: &[&str] = &[
    "ACCESS METHOD",
    "CAST",
    "COLLATION",
    "CONVERSION",
    "DATABASE PROPERTIES",
    "DATABASE",
    "DEFAULT ACL",
    "EVENT TRIGGER",
    "FOREIGN DATA WRAPPER",
    "OPERATOR CLASS",
    "OPERATOR FAMILY",
    "OPERATOR",
    "PROCEDURAL LANGUAGE",
    "SECURITY LABEL",
    "SERVER",
    "TEXT SEARCH CONFIGURATION",
    "TEXT SEARCH DICTIONARY",
    "TEXT SEARCH PARSER",
    "TEXT SEARCH TEMPLATE",
    "TRANSFORM",
    "USER MAPPING",
];

/// What is there already and is no object in scope.
#[derive(Debug, Default)]
pub struct Present {
    pub schemas: BTreeSet<String>,
    pub extensions: BTreeSet<String>,
    pub publications: BTreeSet<String>,
}

/// Lines for `pg_restore --use-list`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// Restored section by section, without grants.
    pub main: Vec<String>,
    /// Grants and the content of materialised views, after the rest.
    pub last: Vec<String>,
    /// Names that the snapshot has and the database shall keep.
    pub schemas: BTreeSet<String>,
    pub extensions: BTreeSet<String>,
    pub publications: BTreeSet<String>,
}

/// Sorts what `pg_restore --list` printed. An entry of an unknown kind is an error: half understood is not restored.
pub fn lists(listing: &str, schema: &Schema, present: &Present) -> Result<Lists> {
    let mut lists = Lists::default();
    for line in listing.lines().filter(|line| !line.starts_with(';') && !line.trim().is_empty()) {
        let unknown = || Error::NotRestorable { what: format!("the dump has an entry of an unknown kind: {line}") };
        // dump id, catalogue, object id, kind, schema, name, owner
        let rest = line.splitn(4, ' ').nth(3).ok_or_else(unknown)?;
        let kind = kind_of(rest).ok_or_else(unknown)?;
        let rest = rest.get(kind.len() + 1..).unwrap_or_default();
        let (namespace, tag) = rest.split_once(' ').unwrap_or((rest, ""));
        // Tag and owner are divided by a space too, and an extension has no owner.
        let name = || if kind == "EXTENSION" { tag.trim() } else { tag.rsplit_once(' ').map_or(tag, |(tag, _)| tag) };
        let chosen = match kind {
            "SCHEMA" => missing(&mut lists.schemas, &present.schemas, name()),
            "EXTENSION" => missing(&mut lists.extensions, &present.extensions, name()),
            "PUBLICATION" => missing(&mut lists.publications, &present.publications, name()),
            "TABLE DATA" => in_scope(schema, namespace, name()),
            "COMMENT" => is_restored(tag, present),
            "ACL" => is_restored(tag, present),
            kind => !LEFT_ALONE.contains(&kind),
        };
        match (chosen, LAST.contains(&kind)) {
            (true, true) => lists.last.push(line.to_owned()),
            (true, false) => lists.main.push(line.to_owned()),
            (false, _) => {}
        }
    }
    Ok(lists)
}

fn kind_of(rest: &str) -> Option<&'static str> {
    let all = [RESTORED, LAST, WHERE_MISSING, LEFT_ALONE].into_iter().flatten();
    all.copied()
        .filter(|kind| rest.strip_prefix(kind).is_some_and(|rest| rest.starts_with(' ')))
        .max_by_key(|k| k.len())
}

fn missing(named: &mut BTreeSet<String>, present: &BTreeSet<String>, name: &str) -> bool {
    named.insert(name.to_owned());
    !present.contains(name)
}

/// Tables of extensions keep their rows.
fn in_scope(schema: &Schema, namespace: &str, name: &str) -> bool {
    schema.relations.values().any(|relation| relation.schema == namespace && relation.name == name)
}

/// Comments and grants of what is left alone are left alone as well. `tag` begins with the kind of their object.
fn is_restored(tag: &str, present: &Present) -> bool {
    let name = |kind: &str| tag.strip_prefix(kind).and_then(|rest| rest.strip_prefix(' '));
    let is = |set: &BTreeSet<String>, name: &str| {
        set.iter()
            .any(|known| name.starts_with(&format!("{known} ")) || name.starts_with(&format!("{} ", quoted(known))))
    };
    if let Some(name) = name("SCHEMA") {
        return !is(&present.schemas, name);
    }
    if let Some(name) = name("PUBLICATION") {
        return !is(&present.publications, name);
    }
    !["EXTENSION", "DATABASE", "LANGUAGE", "FOREIGN SERVER"]
        .into_iter()
        .chain(LEFT_ALONE.iter().copied())
        .any(|kind| name(kind).is_some())
}

fn quoted(name: &str) -> String {
    crate::snapshot::quote_ident(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::schema::Relation;

    const LISTING: &str = ";
; Archive created at 2026-01-10 03:00:00 UTC
6; 2615 16418 SCHEMA - x app
3387; 0 0 COMMENT - SCHEMA x app
3388; 0 0 ACL - SCHEMA x app
2; 3079 16500 EXTENSION - pg_trgm 
3; 0 0 COMMENT - EXTENSION pg_trgm 
216; 1259 16393 TABLE public t app
3390; 0 0 COMMENT public COLUMN t.a app
3391; 0 0 ACL public TABLE t app
3378; 0 16393 TABLE DATA public t app
3379; 0 16394 TABLE DATA public spatial_ref_sys app
3394; 0 0 SEQUENCE SET public t_id_seq app
3375; 6104 16416 PUBLICATION - pb app
3376; 6106 16417 PUBLICATION TABLE public pb t app
2057; 826 16419 DEFAULT ACL - DEFAULT PRIVILEGES FOR TABLES app
3380; 0 16407 MATERIALIZED VIEW DATA public mv app
";

    fn kinds(lines: &[String]) -> Vec<&str> {
        lines.iter().map(|line| line.splitn(4, ' ').nth(3).unwrap()).collect()
    }

    fn schema() -> Schema {
        let table = Relation { schema: "public".to_owned(), name: "t".to_owned(), ..Relation::default() };
        Schema { relations: [("public.t".to_owned(), table)].into(), ..Schema::default() }
    }

    fn set(name: &str) -> BTreeSet<String> {
        [name.to_owned()].into()
    }

    #[test]
    fn what_is_there_is_not_made_again_but_its_members_are() {
        let present = Present { schemas: set("x"), extensions: set("pg_trgm"), publications: set("pb") };
        let found = lists(LISTING, &schema(), &present).unwrap();
        assert_eq!(
            kinds(&found.main),
            [
                "TABLE public t app",
                "COMMENT public COLUMN t.a app",
                "TABLE DATA public t app",
                "SEQUENCE SET public t_id_seq app",
                "PUBLICATION TABLE public pb t app"
            ]
        );
        assert_eq!(kinds(&found.last), ["ACL public TABLE t app", "MATERIALIZED VIEW DATA public mv app"]);
        assert_eq!((found.schemas, found.extensions, found.publications), (set("x"), set("pg_trgm"), set("pb")));
    }

    #[test]
    fn what_went_missing_is_made_again() {
        let found = lists(LISTING, &schema(), &Present::default()).unwrap();
        for line in ["SCHEMA - x app", "EXTENSION - pg_trgm ", "PUBLICATION - pb app"] {
            assert!(kinds(&found.main).contains(&line), "{line}");
        }
        assert!(kinds(&found.last).contains(&"ACL - SCHEMA x app"));
    }

    #[test]
    fn an_entry_of_an_unknown_kind_is_refused() {
        let error = lists("7; 0 0 BLOB - 16400 app", &schema(), &Present::default()).unwrap_err();
        assert_eq!(error.reason(), "SnapshotNotRestorable");
    }
}
