//! PreFlight: reads server, identity, size, privileges and what an upgrade cannot handle. Writes nothing.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{
    context::Context,
    protocol::{Facts, InspectFacts, InspectOrder, JobReport},
    report,
};
use crate::{
    api::{
        release::{CheckResult, Verdict},
        upgrade::{Category, DatabaseIdentity, Engine},
    },
    snapshot::{
        Error, Result, dump, identity,
        late::carry::{self, Found},
        markers, peers, pooler, quote_ident,
        schema::{self, Kind},
        session::{application_name, execute},
    },
};

/// What ends a backend whose client was killed exists from here on.
const OLDEST: u32 = 140_000;

const SCOPE: &str = "pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'memoria_operator')
      AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')";

pub async fn run(context: &Context, order: &InspectOrder) -> Result<JobReport> {
    let url = context.url()?;
    if pooler::stands_before(url, &application_name(&order.database.attempt, "inspect")).await? {
        let message = format!(
            "{} is a connection pooler: sessions change between transactions; give a URL that leads to PostgreSQL itself",
            url.host_and_port()
        );
        return Ok(report::refused(Category::Environment, "DirectConnection", message));
    }
    let mut session = context.session(&order.database, "inspect").await?;
    execute(&mut session, "making the session read-only", "SET default_transaction_read_only = on").await?;
    let mut findings = Vec::new();
    let identity = identity::read(&mut session, url).await?;
    let version = session.server_version_num().unwrap_or_default();
    let (server_version, bytes, tables): (String, i64, i64) = sqlx::query_as(AssertSqlSafe(format!(
        "SELECT current_setting('server_version'), pg_database_size(current_database()),
                (SELECT count(*) FROM {SCOPE} AND c.relkind IN ('r','p'))"
    )))
    .fetch_one(&mut session)
    .await
    .map_err(Error::query("reading version and size"))?;
    if version < OLDEST {
        let message =
            format!("PostgreSQL {server_version}: a killed migration's session would run on; upgrade to 14 or later");
        findings.push(failed("DatabaseVersion", message));
    }
    privileges(&mut session, &identity, &mut findings).await?;
    obstacles(&mut session, &mut findings).await?;
    carry_forward(&mut session, &order.carry_forward, &mut findings).await?;
    let prepared = peers::prepared(&mut session).await?;
    if !prepared.is_empty() {
        findings.push(failed("PreparedTransactions", super::fence::prepared_transactions(&prepared).message));
    }
    let unfinished = markers::all(&mut session).await?.into_iter().filter(|marker| !marker.finished);
    let unfinished: Vec<_> = unfinished.map(|marker| marker.attempt).collect();
    let _ = session.close().await;
    let message = format!("PostgreSQL {server_version}, {tables} tables, {bytes} bytes, {} findings", findings.len());
    let facts = InspectFacts {
        major: (version / 10_000).cast_signed(),
        server_version,
        identity,
        bytes,
        tables: i32::try_from(tables).unwrap_or(i32::MAX),
        findings,
        unfinished,
        engine: Engine::Postgresql,
        data_volume: None,
        path: None,
    };
    Ok(report::done(message, Facts::Inspect(facts)))
}

fn failed(name: &str, message: String) -> CheckResult {
    CheckResult { name: name.to_owned(), result: Verdict::Failed, message }
}

async fn list(session: &mut PgConnection, doing: &'static str, sql: String) -> Result<Vec<String>> {
    let rows: Vec<(String,)> =
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(session).await.map_err(Error::query(doing))?;
    Ok(rows.into_iter().map(|(line,)| line).collect())
}

async fn privileges(
    session: &mut PgConnection,
    identity: &DatabaseIdentity,
    findings: &mut Vec<CheckResult>,
) -> Result<()> {
    let (role, superuser, bypasses, may_create): (String, bool, bool, bool) = sqlx::query_as(
        "SELECT rolname::text, rolsuper, rolbypassrls, has_database_privilege(current_database(), 'CREATE')
         FROM pg_roles WHERE rolname = current_user",
    )
    .fetch_one(&mut *session)
    .await
    .map_err(Error::query("reading the role's rights"))?;
    let foreign = |kinds: &str| {
        format!(
            "SELECT format('%s (owner %s)', c.oid::regclass, pg_get_userbyid(c.relowner)) FROM {SCOPE}
             AND c.relkind IN ({kinds}) AND NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1"
        )
    };
    if !superuser {
        let tables = list(session, "looking for tables of other owners", foreign("'r','p','S'")).await?;
        if !tables.is_empty() {
            let role = quote_ident(&role);
            findings.push(failed(
                "DatabasePrivileges",
                format!(
                    "role {role} does not own {}; for each run ALTER TABLE … OWNER TO {role} as its owner or a superuser",
                    dump::first(&tables)
                ),
            ));
        }
        let views = list(session, "looking for foreign views", foreign("'v','m'")).await?;
        if !views.is_empty() {
            findings.push(failed(
                "ForeignDependents",
                format!(
                    "views of other owners: {}; they would keep the data from being taken back: drop them or run ALTER VIEW … OWNER TO {}",
                    dump::first(&views),
                    quote_ident(&role)
                ),
            ));
        }
    }
    if !may_create && !markers::exist(session).await? {
        findings.push(failed(
            "MarkerSchema",
            format!(
                "role {0} may not make the schema memoria_operator for the attempt's markers; run GRANT CREATE ON DATABASE {1} TO {0}",
                quote_ident(&role),
                quote_ident(&identity.name)
            ),
        ));
    }
    if !superuser && !bypasses {
        let sql = format!("SELECT c.oid::regclass::text FROM {SCOPE} AND c.relforcerowsecurity ORDER BY 1");
        let forced = list(session, "looking for row security", sql).await?;
        if !forced.is_empty() {
            findings.push(failed(
                "RowSecurity",
                format!(
                    "FORCE ROW LEVEL SECURITY hides rows even from the owner in {}; run ALTER TABLE … NO FORCE ROW LEVEL SECURITY or give the role BYPASSRLS",
                    dump::first(&forced)
                ),
            ));
        }
    }
    Ok(())
}

/// Tables that a restore could never carry forward.
async fn carry_forward(session: &mut PgConnection, names: &[String], findings: &mut Vec<CheckResult>) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let schema = schema::read(session).await?;
    let find = |name: &str| {
        let relation = schema.relations.values().find(|relation| carry::means(name, relation))?;
        Some(Found { has_rows: relation.kind == Kind::Table, primary_key: &relation.primary_key })
    };
    findings.extend(carry::obstacles(names, find).map(|message| failed(carry::CHECK, message)));
    Ok(())
}

/// What a snapshot of this release cannot hold or a restore could not take back.
async fn obstacles(session: &mut PgConnection, findings: &mut Vec<CheckResult>) -> Result<()> {
    let (replica, large_objects): (bool, i64) =
        sqlx::query_as("SELECT pg_is_in_recovery(), (SELECT count(*) FROM pg_largeobject_metadata)")
            .fetch_one(&mut *session)
            .await
            .map_err(Error::query("looking for large objects"))?;
    if replica {
        let message = "the URL leads to a read-only replica; give one that leads to the primary".to_owned();
        findings.push(failed("PrimaryServer", message));
    }
    if large_objects > 0 {
        let message = format!(
            "{large_objects} large objects cannot be taken back; move them into bytea columns (SELECT lo_get(oid)) and unlink them"
        );
        findings.push(failed("LargeObjects", message));
    }
    let foreign = list(
        session,
        "looking for foreign tables",
        format!("SELECT c.oid::regclass::text FROM {SCOPE} AND c.relkind = 'f' ORDER BY 1"),
    )
    .await?;
    if !foreign.is_empty() {
        let message = format!(
            "foreign tables hold data that no snapshot of this database has: {}; drop them or move them to another database",
            dump::first(&foreign)
        );
        findings.push(failed("ForeignTables", message));
    }
    let subscriptions = list(
        session,
        "looking for subscriptions",
        "SELECT subname::text FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1".to_owned(),
    )
    .await?;
    if !subscriptions.is_empty() {
        let message = format!(
            "subscriptions write into this database: {}; drop them before the upgrade",
            dump::first(&subscriptions)
        );
        findings.push(failed("Subscriptions", message));
    }
    Ok(())
}
