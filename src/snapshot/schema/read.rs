//! Reads the catalogue. A handful of queries for the whole database, none per table.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, FromRow, PgConnection, postgres::PgRow};

use super::{Access, Column, Kind, Relation, Schema, Sequence};
use crate::snapshot::{
    error::{Error, Result},
    sha256_hex,
};

/// Schemas in scope; `n` is `pg_namespace`.
const IN_SCOPE: &str = "n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'memoria_operator')";

fn no_member(class: &str, oid: &str) -> String {
    format!(
        "NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = '{class}'::regclass AND e.objid = {oid} AND e.deptype = 'e')"
    )
}

/// Reads every object in scope. The session must come from [`crate::snapshot::session`]: names depend on its settings.
pub async fn read(session: &mut PgConnection) -> Result<Schema> {
    let mut schema = Schema {
        schemas: names(
            session,
            &format!(
                "SELECT n.nspname::text FROM pg_namespace n WHERE {IN_SCOPE} AND {}",
                no_member("pg_namespace", "n.oid")
            ),
        )
        .await?,
        extensions: names(session, "SELECT extname::text FROM pg_extension").await?,
        ..Schema::default()
    };
    let oids = relations(session, &mut schema).await?;
    columns(session, &mut schema, &oids).await?;
    parts(session, &mut schema, &oids).await?;
    sequences(session, &mut schema).await?;
    types(session, &mut schema).await?;
    functions(session, &mut schema).await?;
    access(session, &mut schema.access).await?;
    Ok(schema)
}

async fn rows<T>(session: &mut PgConnection, sql: String) -> Result<Vec<T>>
where
    T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    sqlx::query_as(AssertSqlSafe(sql)).fetch_all(session).await.map_err(Error::query("reading the schema"))
}

async fn names(session: &mut PgConnection, sql: &str) -> Result<BTreeSet<String>> {
    Ok(rows::<(String,)>(session, sql.to_owned()).await?.into_iter().map(|(name,)| name).collect())
}

/// FROM and WHERE of everything that hangs on a relation in scope; `c` is `pg_class`.
fn relation_scope() -> String {
    format!(
        "pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {IN_SCOPE} AND {} AND c.relkind IN ('r','p','v','m','f')",
        no_member("pg_class", "c.oid")
    )
}

async fn relations(session: &mut PgConnection, schema: &mut Schema) -> Result<BTreeMap<i64, String>> {
    let sql = format!(
        "SELECT c.oid::bigint AS oid, format('%I.%I', n.nspname, c.relname) AS key, n.nspname::text AS schema,
                c.relname::text AS name, c.relkind::text AS kind, c.relpersistence = 'u' AS unlogged,
                c.relrowsecurity AS row_security, c.relforcerowsecurity AS force_row_security,
                CASE WHEN c.relkind IN ('v','m') THEN pg_get_viewdef(c.oid) END AS definition,
                pg_get_partkeydef(c.oid) AS partition_key, pg_get_expr(c.relpartbound, c.oid) AS partition_bound,
                ARRAY(SELECT i.inhparent::regclass::text FROM pg_inherits i WHERE i.inhrelid = c.oid) AS parents
         FROM {}",
        relation_scope()
    );
    let mut oids = BTreeMap::new();
    for (
        oid,
        key,
        namespace,
        name,
        kind,
        unlogged,
        row_security,
        force_row_security,
        definition,
        partition_key,
        partition_bound,
        parents,
    ) in rows::<(
        i64,
        String,
        String,
        String,
        String,
        bool,
        bool,
        bool,
        Option<String>,
        Option<String>,
        Option<String>,
        Vec<String>,
    )>(session, sql)
    .await?
    {
        let kind = match kind.as_str() {
            "p" => Kind::PartitionedTable,
            "v" => Kind::View,
            "m" => Kind::MaterializedView,
            "f" => Kind::ForeignTable,
            _ => Kind::Table,
        };
        let inheritance = parents.into_iter().map(|parent| format!("of {parent}"));
        oids.insert(oid, key.clone());
        let relation = Relation {
            schema: namespace,
            name,
            kind,
            unlogged,
            row_security,
            force_row_security,
            definition,
            inheritance: inheritance.chain(partition_key).chain(partition_bound).collect(),
            ..Relation::default()
        };
        schema.relations.insert(key, relation);
    }
    Ok(oids)
}

async fn columns(session: &mut PgConnection, schema: &mut Schema, oids: &BTreeMap<i64, String>) -> Result<()> {
    let sql = format!(
        "SELECT a.attrelid::bigint AS relation, a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS data_type,
                a.attnotnull AS not_null, pg_get_expr(d.adbin, d.adrelid) AS default, a.attidentity::text AS identity,
                a.attgenerated::text AS generated,
                (SELECT format('%I.%I', cn.nspname, co.collname) FROM pg_collation co
                 JOIN pg_namespace cn ON cn.oid = co.collnamespace, pg_type t
                 WHERE t.oid = a.atttypid AND co.oid = a.attcollation AND a.attcollation <> t.typcollation) AS collation
         FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attrelid IN (SELECT c.oid FROM {})",
        relation_scope()
    );
    for (oid, name, data_type, not_null, default, identity, generated, collation) in
        rows::<(i64, String, String, bool, Option<String>, String, String, Option<String>)>(session, sql).await?
    {
        let column = Column {
            data_type,
            nullable: !not_null,
            default,
            identity: match identity.as_str() {
                "a" => Some("always".to_owned()),
                "d" => Some("byDefault".to_owned()),
                _ => None,
            },
            generated: !generated.is_empty(),
            collation,
        };
        if let Some(relation) = relation(schema, oids, oid) {
            relation.columns.insert(name, column);
        }
    }
    Ok(())
}

fn relation<'a>(schema: &'a mut Schema, oids: &BTreeMap<i64, String>, oid: i64) -> Option<&'a mut Relation> {
    oids.get(&oid).and_then(|key| schema.relations.get_mut(key))
}

/// Keys, constraints, indexes, triggers, rules and policies.
async fn parts(session: &mut PgConnection, schema: &mut Schema, oids: &BTreeMap<i64, String>) -> Result<()> {
    let scope = relation_scope();
    let keys = format!(
        "SELECT k.conrelid::bigint, ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS x(attnum, place)
                JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = x.attnum ORDER BY x.place)
         FROM pg_constraint k WHERE k.contype = 'p' AND k.conrelid IN (SELECT c.oid FROM {scope})"
    );
    for (oid, columns) in rows::<(i64, Vec<String>)>(session, keys).await? {
        if let Some(relation) = relation(schema, oids, oid) {
            relation.primary_key = columns;
        }
    }
    let texts = format!(
        "SELECT 'constraint', k.conrelid::bigint, pg_get_constraintdef(k.oid) FROM pg_constraint k
         WHERE k.contype IN ('f','c','x') AND k.conrelid IN (SELECT c.oid FROM {scope})
         UNION ALL
         SELECT 'index', i.indrelid::bigint, CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END
                || substring(pg_get_indexdef(i.indexrelid) from ' USING (.*)$')
                || CASE WHEN k.condeferred THEN ' INITIALLY DEFERRED' WHEN k.condeferrable THEN ' DEFERRABLE' ELSE '' END
                || CASE WHEN i.indisvalid THEN '' ELSE ' INVALID' END
         FROM pg_index i LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('u','x')
         WHERE NOT i.indisprimary AND k.contype IS DISTINCT FROM 'x' AND i.indrelid IN (SELECT c.oid FROM {scope})
         UNION ALL
         SELECT 'trigger', t.tgrelid::bigint, pg_get_triggerdef(t.oid) || ' /' || t.tgenabled::text FROM pg_trigger t
         WHERE NOT t.tgisinternal AND t.tgrelid IN (SELECT c.oid FROM {scope})
         UNION ALL
         SELECT 'trigger', r.ev_class::bigint, pg_get_ruledef(r.oid) FROM pg_rewrite r
         WHERE r.rulename <> '_RETURN' AND r.ev_class IN (SELECT c.oid FROM {scope})
         UNION ALL
         SELECT 'policy', p.polrelid::bigint, format('%I %s %s TO %s USING %s CHECK %s', p.polname, p.polcmd, p.polpermissive,
                array_to_string(ARRAY(SELECT CASE r WHEN 0 THEN 'public' ELSE pg_get_userbyid(r)::text END
                                      FROM unnest(p.polroles) r ORDER BY 1), ','),
                pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
         FROM pg_policy p WHERE p.polrelid IN (SELECT c.oid FROM {scope})"
    );
    for (part, oid, text) in rows::<(String, i64, String)>(session, texts).await? {
        let Some(relation) = relation(schema, oids, oid) else { continue };
        match part.as_str() {
            "constraint" => relation.constraints.insert(text),
            "index" => relation.indexes.insert(text),
            "trigger" => relation.triggers.insert(text),
            _ => relation.policies.insert(text),
        };
    }
    Ok(())
}

async fn sequences(session: &mut PgConnection, schema: &mut Schema) -> Result<()> {
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname) AS key, format_type(s.seqtypid, NULL) AS data_type,
                s.seqstart AS start, s.seqincrement AS increment, s.seqmin AS min, s.seqmax AS max, s.seqcache AS cache,
                s.seqcycle AS cycle,
                (SELECT format('%s.%I', a.attrelid::regclass, a.attname) FROM pg_depend d
                 JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                 WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass
                   AND d.refobjsubid > 0 AND d.deptype IN ('a','i')) AS owned_by
         FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE {IN_SCOPE} AND {}",
        no_member("pg_class", "c.oid")
    );
    for (key, data_type, start, increment, min, max, cache, cycle, owned_by) in
        rows::<(String, String, i64, i64, i64, i64, i64, bool, Option<String>)>(session, sql).await?
    {
        schema.sequences.insert(key, Sequence { data_type, start, increment, min, max, cache, cycle, owned_by });
    }
    Ok(())
}

async fn types(session: &mut PgConnection, schema: &mut Schema) -> Result<()> {
    let free = no_member("pg_type", "t.oid");
    let enums = format!(
        "SELECT format('%I.%I', n.nspname, t.typname),
                ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder)
         FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.typtype = 'e' AND {IN_SCOPE} AND {free}"
    );
    schema.enums = rows::<(String, Vec<String>)>(session, enums).await?.into_iter().collect();
    let others = format!(
        "SELECT format('%I.%I', n.nspname, t.typname),
                CASE t.typtype
                  WHEN 'd' THEN concat_ws(' ', 'domain', format_type(t.typbasetype, t.typtypmod),
                    CASE WHEN t.typnotnull THEN 'not null' END, t.typdefault,
                    (SELECT string_agg(pg_get_constraintdef(k.oid), ' ' ORDER BY k.conname) FROM pg_constraint k
                     WHERE k.contypid = t.oid AND k.contype = 'c'))
                  WHEN 'r' THEN (SELECT 'range of ' || format_type(r.rngsubtype, NULL) FROM pg_range r WHERE r.rngtypid = t.oid)
                  ELSE 'composite ' || coalesce((SELECT string_agg(format('%I %s', a.attname,
                    format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum) FROM pg_attribute a
                    WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped), '')
                END
         FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_class k ON k.oid = t.typrelid
         WHERE (t.typtype IN ('d','r') OR (t.typtype = 'c' AND k.relkind = 'c')) AND {IN_SCOPE} AND {free}"
    );
    schema.types = rows::<(String, String)>(session, others).await?.into_iter().collect();
    Ok(())
}

async fn functions(session: &mut PgConnection, schema: &mut Schema) -> Result<()> {
    let sql = format!(
        "SELECT format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
                CASE p.prokind WHEN 'a' THEN 'aggregate ' || pg_get_function_result(p.oid) ELSE pg_get_functiondef(p.oid) END
         FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {IN_SCOPE} AND {}",
        no_member("pg_proc", "p.oid")
    );
    let found = rows::<(String, String)>(session, sql).await?;
    schema.functions = found.into_iter().map(|(name, text)| (name, sha256_hex(text))).collect();
    Ok(())
}

async fn access(session: &mut PgConnection, access: &mut Access) -> Result<()> {
    let scope = format!(
        "pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {IN_SCOPE} AND {}
         AND c.relkind IN ('r','p','v','m','f','S')",
        no_member("pg_class", "c.oid")
    );
    let owners =
        format!("SELECT format('%I.%I', n.nspname, c.relname), pg_get_userbyid(c.relowner)::text FROM {scope}");
    access.owners = rows::<(String, String)>(session, owners).await?.into_iter().collect();
    let grants = format!(
        "SELECT format('%I.%I', n.nspname, c.relname), unnest(coalesce(c.relacl,
                acldefault(CASE c.relkind WHEN 'S' THEN 's'::\"char\" ELSE 'r'::\"char\" END, c.relowner)))::text FROM {scope}
         UNION ALL
         SELECT format('%I.%I.%I', n.nspname, c.relname, a.attname), unnest(a.attacl)::text
         FROM pg_attribute a JOIN ({}) x ON x.oid = a.attrelid JOIN pg_class c ON c.oid = a.attrelid
         JOIN pg_namespace n ON n.oid = c.relnamespace",
        format_args!("SELECT c.oid FROM {scope}")
    );
    for (object, grant) in rows::<(String, String)>(session, grants).await? {
        access.grants.entry(object).or_default().insert(grant);
    }
    let publications = "SELECT format('%I: %s', p.pubname, CASE WHEN p.puballtables THEN 'all tables' ELSE coalesce(
                string_agg(format('%I.%I', t.schemaname, t.tablename), ', ' ORDER BY t.schemaname, t.tablename), '') END)
         FROM pg_publication p LEFT JOIN pg_publication_tables t ON t.pubname = p.pubname GROUP BY p.pubname, p.puballtables";
    access.publications = names(session, publications).await?;
    Ok(())
}
