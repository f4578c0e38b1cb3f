//! The copy that a rehearsal works on: the live database as one read-only transaction saw it, restored into an ephemeral
//! server with the same roles, rights and settings, and proved to be the same.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tracing::{info, warn};

use super::STEP;
use crate::{
    job::{context::Context, protocol::RehearsalOrder},
    snapshot::{
        Error, Result,
        digest::{self, DataDigest},
        dump, markers, quote_ident,
        schema::{self, Schema},
        scratch::{SUPERUSER, ScratchServer},
        session::{application_name, execute},
        tools::Tools,
    },
};

/// Roles of the server with what they may do, and who is a member of whom.
const ROLES: &str = "SELECT rolname::text, concat_ws(' ', CASE WHEN rolsuper THEN 'SUPERUSER' END,
        CASE WHEN rolinherit THEN 'INHERIT' ELSE 'NOINHERIT' END, CASE WHEN rolcreaterole THEN 'CREATEROLE' END,
        CASE WHEN rolcreatedb THEN 'CREATEDB' END, CASE WHEN rolbypassrls THEN 'BYPASSRLS' END)
    FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1";

/// Everything that a copy is made of.
pub(super) struct Live {
    pub schema: Schema,
    pub data: DataDigest,
    encoding: String,
    roles: Vec<(String, String)>,
    /// `GRANT … TO …`, whole.
    memberships: Vec<String>,
    owner: String,
    may_create: bool,
    /// `name=value`, set for this database or for the role.
    settings: Vec<String>,
}

/// Reads and dumps the live database into `directory` in one read-only transaction, beside whoever uses it.
pub(super) async fn read(
    context: &Context,
    order: &RehearsalOrder,
    tools: &Tools,
    session: &mut PgConnection,
    directory: &Path,
) -> Result<Live> {
    fs::create_dir_all(directory).map_err(Error::io("making", directory))?;
    // No lock but the one that every reader has: writers go on.
    execute(session, "beginning to read", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let snapshot = dump::export(session).await?;
    let schema = schema::read(session).await?;
    let (encoding, _) = dump::surroundings(session).await?;
    let roles = sqlx::query_as(ROLES).fetch_all(&mut *session).await.map_err(Error::query("reading the roles"))?;
    let memberships = lines(session, "reading the roles' members", members(tools.major)).await?;
    let (owner, may_create) = sqlx::query_as(
        "SELECT pg_get_userbyid(datdba)::text, has_database_privilege(current_database(), 'CREATE')
         FROM pg_database WHERE datname = current_database()",
    )
    .fetch_one(&mut *session)
    .await
    .map_err(Error::query("reading the database's owner"))?;
    let settings = "SELECT unnest(setconfig) FROM pg_db_role_setting s
        WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
          AND setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))
        ORDER BY setdatabase <> 0, setrole <> 0";
    let settings = lines(session, "reading the role's settings", settings.to_owned()).await?;
    let application = application_name(&order.database.attempt, STEP);
    let dumping = dump::dump(tools, context.url()?, &application, &snapshot, (directory, &context.places.scratch));
    let digesting = digest::all(session, &schema, |table, digest| info!(table, rows = digest.rows, "digested"));
    let ((), mut data) = tokio::try_join!(dumping, digesting)?;
    execute(session, "ending the reading", "ROLLBACK").await?;
    // Sequences belong to no transaction: what uses the database moves them meanwhile.
    data.sequences.clear();
    Ok(Live { schema, data, encoding, roles, memberships, owner, may_create, settings })
}

fn members(major: u32) -> String {
    let options = if major >= 16 {
        "format(' WITH INHERIT %s, SET %s', a.inherit_option::text, a.set_option::text)"
    } else {
        "''"
    };
    format!(
        "SELECT format('GRANT %I TO %I', r.rolname, m.rolname) || {options} FROM pg_auth_members a
         JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member ORDER BY 1"
    )
}

async fn lines(session: &mut PgConnection, doing: &'static str, sql: String) -> Result<Vec<String>> {
    let rows: Vec<(String,)> =
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(session).await.map_err(Error::query(doing))?;
    Ok(rows.into_iter().map(|(line,)| line).collect())
}

impl Live {
    /// Extensions that the database has and the ephemeral server could not make.
    pub async fn missing_extensions(&self, server: &ScratchServer) -> Result<Vec<String>> {
        let mut session = server.session(SUPERUSER, "postgres").await?;
        let sql = "SELECT name::text FROM pg_available_extensions".to_owned();
        let available: BTreeSet<_> = lines(&mut session, "asking for extensions", sql).await?.into_iter().collect();
        Ok(self.schema.extensions.difference(&available).cloned().collect())
    }

    /// Makes the copy as `database` of the ephemeral server, for `role` to work in as it does in the live one.
    pub async fn restore(
        &self,
        server: &ScratchServer,
        tools: &Tools,
        (dumped, scratch): (&Path, &Path),
        (role, database): (&str, &str),
    ) -> Result<()> {
        let mut admin = server.session(SUPERUSER, "postgres").await?;
        for (name, rights) in self.roles.iter().filter(|(name, _)| name != SUPERUSER) {
            let sql = format!("CREATE ROLE {} LOGIN {rights}", quote_ident(name));
            execute(&mut admin, "making a role in the scratch server", sql).await?;
        }
        for sql in &self.memberships {
            execute(&mut admin, "making a role a member in the scratch server", sql.as_str()).await?;
        }
        let (name, role) = (quote_ident(database), quote_ident(role));
        let create = format!(
            "CREATE DATABASE {name} OWNER {} TEMPLATE template0 ENCODING '{}' LOCALE 'C'",
            quote_ident(&self.owner),
            self.encoding.replace('\'', "''")
        );
        execute(&mut admin, "making a database in the scratch server", create).await?;
        if self.may_create {
            let grant = format!("GRANT CREATE ON DATABASE {name} TO {role}");
            execute(&mut admin, "granting CREATE in the scratch server", grant).await?;
        }
        let original = dump::Original {
            schema: &self.schema,
            data: &self.data,
            encoding: self.encoding.clone(),
            roles: Vec::new(),
        };
        dump::fill(server, tools, (dumped, scratch), database, &original).await?;
        // What a session loads or where it writes is this server's own business.
        let foreign =
            |setting: &&String| ["_preload_libraries=", "tablespace"].iter().any(|part| setting.contains(part));
        for setting in self.settings.iter().filter(|setting| !foreign(setting)) {
            // A setting of a module that is not loaded here is none that a migration needs.
            if let Err(error) = execute(&mut admin, "setting what is set", set(&name, &role, setting)).await {
                warn!(%error, "a setting of the live database is left out");
            }
        }
        let _ = admin.close().await;
        let mut admin = server.session(SUPERUSER, database).await?;
        // Where the role may not make it, somebody has made it for the role.
        markers::ensure(&mut admin).await?;
        let own = format!(
            "ALTER SCHEMA memoria_operator OWNER TO {role}; ALTER TABLE memoria_operator.attempt_step OWNER TO {role}"
        );
        execute(&mut admin, "giving the markers to the role", own).await?;
        // Nobody else does it here.
        execute(&mut admin, "reading statistics", "ANALYZE").await?;
        let _ = admin.close().await;
        Ok(())
    }
}

/// `ALTER ROLE … SET`. The catalog keeps a list of names as SQL writes it, anything else as a plain text.
fn set(database: &str, role: &str, setting: &str) -> String {
    let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
    let value = match name {
        "search_path" if !value.is_empty() => value.to_owned(),
        _ => format!("'{}'", value.replace('\'', "''")),
    };
    let name: Vec<_> = name.split('.').map(quote_ident).collect();
    format!("ALTER ROLE {role} IN DATABASE {database} SET {} TO {value}", name.join("."))
}

/// What a restore of the database does not take back, by name.
pub(super) async fn beyond_restore(server: &ScratchServer, database: &str) -> Result<BTreeSet<String>> {
    let sql = "SELECT 'large object ' || oid FROM pg_largeobject_metadata
        UNION ALL SELECT 'event trigger ' || evtname FROM pg_event_trigger
        UNION ALL SELECT 'role ' || rolname FROM pg_roles WHERE rolname !~ '^pg_'
        UNION ALL SELECT 'database ' || datname FROM pg_database
        UNION ALL SELECT 'setting ' || unnest(setconfig) FROM pg_db_role_setting";
    let mut session = server.session(SUPERUSER, database).await?;
    let found = lines(&mut session, "looking beyond the tables", sql.to_owned()).await?;
    let _ = tokio::time::timeout(Duration::from_secs(5), session.close()).await;
    Ok(found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::set;

    #[test]
    fn a_list_of_names_is_set_as_it_is_kept_and_a_text_is_quoted() {
        assert_eq!(
            set("d", "r", "search_path=app, \"$user\""),
            r#"ALTER ROLE r IN DATABASE d SET "search_path" TO app, "$user""#
        );
        assert_eq!(set("d", "r", "my.note=it's"), r#"ALTER ROLE r IN DATABASE d SET "my"."note" TO 'it''s'"#);
    }
}
