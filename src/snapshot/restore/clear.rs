//! Drops everything in scope, and nothing else: RESTRICT throughout, so that whatever somebody hung on our objects refuses.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, PgConnection, postgres::PgDatabaseError};

use super::contents::{Lists, Present};
use crate::snapshot::{
    dump,
    error::{Error, Result},
    quote_ident,
    schema::{Kind, Schema},
    session::execute,
};

/// Names objects in scope that are another role's: only they, or a superuser, could drop those.
pub async fn foreign(session: &mut PgConnection) -> Result<Vec<String>> {
    let sql = "SELECT format('%s %I.%I of %s', CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                      WHEN 'S' THEN 'sequence' ELSE 'table' END, n.nspname, c.relname, pg_get_userbyid(c.relowner))
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'memoria_operator')
                 AND c.relkind IN ('r','p','v','m','f','S') AND NOT pg_has_role(c.relowner, 'USAGE')
                 AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')
               ORDER BY 1";
    let rows: Vec<(String,)> =
        sqlx::query_as(sql).fetch_all(session).await.map_err(Error::query("looking for objects of other roles"))?;
    Ok(rows.into_iter().map(|(name,)| name).collect())
}

/// Reads what is there besides objects in scope.
pub async fn present(session: &mut PgConnection, schema: &Schema) -> Result<Present> {
    let publications: Vec<(String,)> = sqlx::query_as("SELECT pubname::text FROM pg_publication")
        .fetch_all(session)
        .await
        .map_err(Error::query("reading the publications"))?;
    Ok(Present {
        schemas: schema.schemas.clone(),
        extensions: schema.extensions.clone(),
        publications: publications.into_iter().map(|(name,)| name).collect(),
    })
}

/// Drops every object of `live`, then schemas, extensions and publications that the snapshot does not know.
pub async fn drop_all(session: &mut PgConnection, live: &Schema, present: &Present, lists: &Lists) -> Result<()> {
    let mut groups = groups(live);
    // Objects of one kind may need those of another in either direction; what is refused now may go after others went.
    while !groups.is_empty() {
        let before = groups.len();
        let (mut left, mut refusal) = (Vec::new(), None);
        for group in groups {
            if let Err(error) = attempt(session, &group).await? {
                left.push(group);
                refusal.get_or_insert(error);
            }
        }
        if left.len() == before {
            // No whole group goes: then one by one, but for tables, whose keys may go in circles.
            let (tables, others): (Vec<_>, Vec<_>) = left.into_iter().partition(|group| group.word == "TABLE");
            left = tables.into_iter().chain(others.iter().flat_map(Group::singles)).collect();
            if let Some(error) = refusal.filter(|_| left.len() == before) {
                return Err(error);
            }
        }
        groups = left;
    }
    for (word, there, wanted) in [
        ("PUBLICATION", &present.publications, &lists.publications),
        ("EXTENSION", &present.extensions, &lists.extensions),
        ("SCHEMA", &present.schemas, &lists.schemas),
    ] {
        // Of these a dump may leave out what every new database has.
        let standard = BTreeSet::from(["public".to_owned(), "plpgsql".to_owned()]);
        for name in there.iter().filter(|name| !wanted.contains(*name) && !standard.contains(*name)) {
            let sql = format!("DROP {word} {} RESTRICT", quote_ident(name));
            execute(session, "dropping what the snapshot does not know", sql).await.map_err(named)?;
        }
    }
    Ok(())
}

/// Objects that one statement drops.
struct Group {
    word: &'static str,
    names: Vec<String>,
}

impl Group {
    fn singles(&self) -> Vec<Self> {
        self.names.iter().map(|name| Self { word: self.word, names: vec![name.clone()] }).collect()
    }
}

fn groups(live: &Schema) -> Vec<Group> {
    let of = |kinds: &[Kind]| -> Vec<String> {
        live.relations.iter().filter(|(_, r)| kinds.contains(&r.kind)).map(|(name, _)| name.clone()).collect()
    };
    // Owned sequences go with their tables.
    let free = live.sequences.iter().filter(|(_, s)| s.owned_by.is_none()).map(|(name, _)| name.clone());
    let groups = [
        Group { word: "VIEW", names: of(&[Kind::View]) },
        Group { word: "MATERIALIZED VIEW", names: of(&[Kind::MaterializedView]) },
        Group { word: "FOREIGN TABLE", names: of(&[Kind::ForeignTable]) },
        Group { word: "TABLE", names: of(&[Kind::Table, Kind::PartitionedTable]) },
        Group { word: "SEQUENCE", names: free.collect() },
        Group { word: "ROUTINE", names: live.functions.keys().cloned().collect() },
        Group { word: "TYPE", names: live.enums.keys().chain(live.types.keys()).cloned().collect() },
    ];
    groups.into_iter().filter(|group| !group.names.is_empty()).collect()
}

/// The inner error: something still needs these objects.
async fn attempt(session: &mut PgConnection, group: &Group) -> Result<Result<()>> {
    execute(session, "marking where to come back to", "SAVEPOINT before_drop").await?;
    let sql = format!("DROP {} {} RESTRICT", group.word, group.names.join(", "));
    let dropped = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *session).await;
    match dropped.map_err(Error::query("dropping what the failed upgrade left")) {
        Ok(_) => {
            execute(session, "going on", "RELEASE SAVEPOINT before_drop").await?;
            Ok(Ok(()))
        }
        Err(error) if matches!(error.sqlstate().as_deref(), Some("2BP01" | "42501")) => {
            execute(session, "coming back", "ROLLBACK TO SAVEPOINT before_drop").await?;
            Ok(Err(named(error)))
        }
        Err(error) => Err(error),
    }
}

/// The refusal with the objects that the server names.
fn named(error: Error) -> Error {
    let Error::Query { source, doing } = error else { return error };
    let said = source.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>());
    let lines = said.map(|said| match (said.code(), said.detail()) {
        ("2BP01", Some(detail)) => detail.lines().map(str::to_owned).collect(),
        ("2BP01" | "42501", _) => vec![said.message().to_owned()],
        _ => Vec::new(),
    });
    match lines.filter(|lines| !lines.is_empty()) {
        Some(lines) => Error::ForeignDependents { objects: dump::first(&lines) },
        None => Error::Query { source, doing },
    }
}
