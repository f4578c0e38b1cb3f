//! What would act on rows while they are replaced, set aside and put back in the same transaction: foreign keys, also those
//! in a circle, and triggers. Their owner may do that; it takes no superuser.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::snapshot::{Error, Result, quote_ident, quote_literal, session::execute};

/// A foreign key as it was.
#[derive(Debug)]
struct ForeignKey {
    /// The table it is of, as SQL writes it.
    table: String,
    name: String,
    definition: String,
    comment: Option<String>,
}

/// A trigger of somebody's, and when it fires: `O`rigin, `R`eplica, `A`lways.
#[derive(Debug)]
struct Trigger {
    table: String,
    name: String,
    fires: String,
}

/// What was set aside.
#[derive(Debug)]
pub(super) struct Aside {
    keys: Vec<ForeignKey>,
    triggers: Vec<Trigger>,
}

impl Aside {
    /// Drops every foreign key of and to these tables, and disables their triggers.
    pub async fn set(session: &mut PgConnection, tables: &[String]) -> Result<Self> {
        let aside = Self { keys: keys(session, tables).await?, triggers: triggers(session, tables).await? };
        for ForeignKey { table, name, .. } in &aside.keys {
            let sql = format!("ALTER TABLE {table} DROP CONSTRAINT {}", quote_ident(name));
            execute(session, "setting a foreign key aside", sql).await?;
        }
        for Trigger { table, name, .. } in &aside.triggers {
            let sql = format!("ALTER TABLE {table} DISABLE TRIGGER {}", quote_ident(name));
            execute(session, "setting a trigger aside", sql).await?;
        }
        Ok(aside)
    }

    /// Puts all back. A row that points nowhere is an error that names its key.
    pub async fn put_back(&self, session: &mut PgConnection) -> Result<()> {
        for Trigger { table, name, fires } in &self.triggers {
            let when = match fires.as_str() {
                "R" => "REPLICA ",
                "A" => "ALWAYS ",
                _ => "",
            };
            let sql = format!("ALTER TABLE {table} ENABLE {when}TRIGGER {}", quote_ident(name));
            execute(session, "putting a trigger back", sql).await?;
        }
        for ForeignKey { table, name, definition, comment } in &self.keys {
            let quoted = quote_ident(name);
            let doing = format!("putting foreign key {name} of {table} back");
            sqlx::raw_sql(AssertSqlSafe(format!("ALTER TABLE {table} ADD CONSTRAINT {quoted} {definition}")))
                .execute(&mut *session)
                .await
                .map_err(Error::query(doing))?;
            if let Some(comment) = comment {
                let sql = format!("COMMENT ON CONSTRAINT {quoted} ON {table} IS {}", quote_literal(comment));
                execute(session, "putting a comment back", sql).await?;
            }
        }
        Ok(())
    }
}

/// Of partitions the parent's key counts.
async fn keys(session: &mut PgConnection, tables: &[String]) -> Result<Vec<ForeignKey>> {
    let sql = "WITH scope AS (SELECT name::regclass::oid AS oid FROM unnest($1::text[]) AS name),
                    touched AS (SELECT oid FROM scope UNION SELECT p.relid::oid FROM scope, pg_partition_ancestors(scope.oid) AS p)
               SELECT k.conrelid::regclass::text, k.conname::text, pg_get_constraintdef(k.oid),
                      obj_description(k.oid, 'pg_constraint')
               FROM pg_constraint k WHERE k.contype = 'f' AND k.conparentid = 0
                 AND (k.conrelid IN (SELECT oid FROM touched) OR k.confrelid IN (SELECT oid FROM touched))
               ORDER BY 1, 2";
    let rows: Vec<(String, String, String, Option<String>)> =
        sqlx::query_as(sql).bind(tables).fetch_all(session).await.map_err(Error::query("reading the foreign keys"))?;
    let key = |(table, name, definition, comment)| ForeignKey { table, name, definition, comment };
    Ok(rows.into_iter().map(key).collect())
}

async fn triggers(session: &mut PgConnection, tables: &[String]) -> Result<Vec<Trigger>> {
    // A partition's copy of its parent's trigger follows the parent's state only where that is set, so each is set.
    let sql = "SELECT t.tgrelid::regclass::text, t.tgname::text, t.tgenabled::text
               FROM pg_trigger t WHERE NOT t.tgisinternal AND t.tgenabled <> 'D'
                 AND t.tgrelid IN (SELECT name::regclass FROM unnest($1::text[]) AS name) ORDER BY 1, 2";
    let rows: Vec<(String, String, String)> =
        sqlx::query_as(sql).bind(tables).fetch_all(session).await.map_err(Error::query("reading the triggers"))?;
    Ok(rows.into_iter().map(|(table, name, fires)| Trigger { table, name, fires }).collect())
}
