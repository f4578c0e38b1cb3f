//! Imports an export, ours or the official tool's, in one transaction: old rows out, new rows in by COPY, and no COMMIT
//! before every digest is the manifest's.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{Connection, PgConnection, postgres::PgCopyIn};
use tokio::sync::mpsc;
use tracing::info;

use super::{
    ENGINE,
    keys::Aside,
    rows::{Decoder, Known, PIECE, Values, WAITING, known},
    target,
};
use crate::snapshot::{
    Error, Result, copying, digest, dump,
    portable::{
        Imported, Input, Manifest, Progress, Source, copy_text,
        manifest::read_schema,
        read::{RawRow, Reader},
    },
    quote_ident,
    restore::sequences,
    schema::{self, Kind, Schema},
    session::{self, execute},
    url::DatabaseUrl,
};

/// What is imported, and where.
pub struct Request<'a> {
    pub url: &'a DatabaseUrl,
    /// `application_name` of our session.
    pub application: &'a str,
    pub source: &'a Source,
    pub progress: Progress,
}

/// Replaces the rows of every table that the source has. Nothing is changed unless all of it is.
pub async fn import(request: &Request<'_>) -> Result<Imported> {
    request.source.must_be(ENGINE)?;
    let mut session = session::open(request.url, request.application).await?;
    execute(&mut session, "beginning the import", "BEGIN").await?;
    let done = within(request, &mut session).await;
    match done {
        Ok(imported) => {
            execute(&mut session, "committing the import; `snapshot verify` tells whether it was", "COMMIT").await?;
            let _ = session.close().await;
            Ok(imported)
        }
        Err(error) => {
            // The session may be in the middle of a COPY: its end rolls back as well.
            drop(session);
            Err(error)
        }
    }
}

async fn within(request: &Request<'_>, session: &mut PgConnection) -> Result<Imported> {
    let live = schema::read(session).await?;
    let scope = match request.source {
        Source::Proved { place, manifest, keys } => {
            let (place, stored, keys) = (place.clone(), manifest.clone(), keys.clone());
            let exported: Schema = blocking(move || read_schema(&place, &stored, &keys)).await?;
            proved_scope(&exported, manifest, &live)?
        }
        Source::Plain { file } => {
            let (file, live) = (file.clone(), live.clone());
            blocking(move || plain_scope(&file, &live)).await?
        }
    };
    // Where they are now; nothing moves them back.
    let positions = digest::sequences(session, &live).await?;
    lock(session, &scope).await?;
    let aside = Aside::set(session, &scope).await?;
    if !scope.is_empty() {
        let list: Vec<_> = scope.iter().map(|table| format!("ONLY {table}")).collect();
        execute(session, "emptying the tables", format!("TRUNCATE {}", list.join(", "))).await?;
    }
    let expected = request.source.manifest().map(Manifest::data);
    let mut rows = 0;
    for file in request.source.files() {
        rows += fill(session, &file, &live, request, |table| {
            expected.as_ref().and_then(|data| data.tables.get(table)).map(|content| content.rows)
        })
        .await?;
    }
    info!(rows, "the rows are in; keys are put back");
    // What a deferrable unique key still has to check would keep its table from being altered.
    execute(session, "checking deferred keys", "SET CONSTRAINTS ALL IMMEDIATE").await?;
    aside.put_back(session).await?;
    refresh(session, &live).await?;
    let wanted = match request.source.manifest() {
        Some(manifest) => {
            prove(session, manifest, &live).await?;
            manifest.sequences.clone()
        }
        None => sequences::highest(session, &live, &scope).await?,
    };
    // Last, because no rollback takes this back. It only ever goes forward, so that does no harm.
    sequences::forward(session, &live, &positions, &wanted).await?;
    Ok(Imported { tables: scope.len(), rows, proved: expected.is_some() })
}

fn proved_scope(exported: &Schema, manifest: &Manifest, live: &Schema) -> Result<Vec<String>> {
    let unfit = target::unfit(exported, live);
    if !unfit.is_empty() {
        return Err(Error::TargetUnfit { what: dump::first(&unfit) });
    }
    Ok(manifest.tables.keys().cloned().collect())
}

/// Reads the whole file once, before anything is changed: which tables it has, and that it is not cut off.
fn plain_scope(file: &Input, live: &Schema) -> Result<Vec<String>> {
    let mut reader = Reader::open(file)?;
    let mut row = RawRow::default();
    let mut counts: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
    while reader.next(&mut row)? {
        match counts.get_mut(row.table()) {
            Some(count) => *count += 1,
            None => drop(counts.insert(row.table().to_vec(), 1)),
        }
    }
    let wrong = reader.miscounted(|name| counts.get(name.as_bytes()).copied().unwrap_or_default());
    if !wrong.is_empty() {
        return Err(reader.fault(wrong.join("; ")));
    }
    let named = reader.metadata().into_iter().flat_map(|metadata| &metadata.tables);
    let names: BTreeSet<Vec<u8>> =
        named.map(|entry| entry.name.clone().into_bytes()).chain(counts.into_keys()).collect();
    let tables = known(live);
    let (mut scope, mut missing) = (BTreeSet::new(), Vec::new());
    for name in names {
        match tables.get(&name) {
            Some(Known { table, .. }) => drop(scope.insert(table.clone())),
            None => missing.push(format!("table {} is missing", String::from_utf8_lossy(&name))),
        }
    }
    if !missing.is_empty() {
        return Err(Error::TargetUnfit { what: dump::first(&missing) });
    }
    Ok(scope.into_iter().collect())
}

async fn lock(session: &mut PgConnection, scope: &[String]) -> Result<()> {
    if scope.is_empty() {
        return Ok(());
    }
    let sql = format!("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE", scope.join(", ONLY "));
    match execute(session, "locking the tables", sql).await {
        Err(error) if error.is_lock_timeout() => {
            Err(Error::Locked { what: "a table".to_owned(), holders: "sessions that read or write it".to_owned() })
        }
        other => other,
    }
}

/// From the reading thread to the session.
enum Step {
    /// The statement that the next rows are for, and their table.
    Copy { statement: String, table: String },
    /// Rows as COPY reads them.
    Rows(Vec<u8>, i64),
}

/// Sends a file's rows; gives their number.
async fn fill(
    session: &mut PgConnection,
    file: &Input,
    live: &Schema,
    request: &Request<'_>,
    expected: impl Fn(&str) -> Option<i64>,
) -> Result<i64> {
    let (sender, mut steps) = mpsc::channel(WAITING);
    let reading = tokio::task::spawn_blocking({
        let (file, tables) = (file.clone(), known(live));
        move || read(&file, tables, &sender)
    });
    let sent = send(session, &mut steps, request, expected).await;
    drop(steps);
    let read = reading.await.map_err(|error| Error::Order { what: format!("a thread ended early: {error}") })?;
    // What is wrong with the file comes first: the server then only heard of the rest.
    read?;
    sent
}

async fn send(
    session: &mut PgConnection,
    steps: &mut mpsc::Receiver<Step>,
    request: &Request<'_>,
    expected: impl Fn(&str) -> Option<i64>,
) -> Result<i64> {
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    let mut next = steps.recv().await;
    while let Some(step) = next {
        let Step::Copy { statement, table } = step else {
            return Err(Error::Order { what: "rows came before their table".to_owned() });
        };
        let failed = |error: sqlx::Error| copying::failed(&statement, error);
        let mut copying: PgCopyIn<&mut PgConnection> = session.copy_in_raw(&statement).await.map_err(failed)?;
        next = loop {
            match steps.recv().await {
                Some(Step::Rows(bytes, rows)) => {
                    copying.send(bytes).await.map_err(failed)?;
                    let count = counts.entry(table.clone()).or_default();
                    *count += rows;
                    (request.progress)(&table, *count, expected(&table));
                }
                other => break other,
            }
        };
        copying.finish().await.map_err(failed)?;
    }
    Ok(counts.values().sum())
}

/// Reads a file's rows and hands them on, in pieces. A receiver that went away is no error: whoever has it knows why.
fn read(file: &Input, tables: BTreeMap<Vec<u8>, Known>, steps: &mpsc::Sender<Step>) -> Result<()> {
    let mut reader = Reader::open(file)?;
    let mut decoder = Decoder::new(tables);
    let (mut row, mut values) = (RawRow::default(), Values::default());
    let (mut piece, mut rows) = (Vec::with_capacity(PIECE + PIECE / 4), 0);
    while reader.next(&mut row)? {
        let place = decoder.place(&row).map_err(|what| reader.fault(what))?;
        // What the server computes itself is not sent.
        let sent = || {
            let fields = place.fields.iter().filter_map(|field| Some((*field, place.known.fields.get(*field)?)));
            fields.filter(|(_, field)| !field.generated)
        };
        if place.begins {
            let full = Step::Rows(std::mem::take(&mut piece), std::mem::take(&mut rows));
            let columns: Vec<_> = sent().map(|(_, field)| quote_ident(&field.name)).collect();
            let list = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
            let statement = format!("COPY {}{list} FROM STDIN", place.known.table);
            let begin = Step::Copy { statement, table: place.known.table.clone() };
            let empty = matches!(&full, Step::Rows(bytes, _) if bytes.is_empty());
            if (!empty && steps.blocking_send(full).is_err()) || steps.blocking_send(begin).is_err() {
                return Ok(());
            }
        }
        values.read(&row, &place).map_err(|what| reader.fault(what))?;
        for (at, (field, _)) in sent().enumerate() {
            if at > 0 {
                piece.push(b'\t');
            }
            copy_text::write_value(values.get(field), &mut piece);
        }
        piece.push(b'\n');
        rows += 1;
        if piece.len() >= PIECE {
            let full = std::mem::replace(&mut piece, Vec::with_capacity(PIECE + PIECE / 4));
            if steps.blocking_send(Step::Rows(full, std::mem::take(&mut rows))).is_err() {
                return Ok(());
            }
        }
    }
    if !piece.is_empty() {
        let _ = steps.blocking_send(Step::Rows(piece, rows));
    }
    Ok(())
}

/// Materialised views hold what their tables held; they are filled anew, those first that others are made of.
async fn refresh(session: &mut PgConnection, live: &Schema) -> Result<()> {
    if !live.relations.values().any(|relation| relation.kind == Kind::MaterializedView) {
        return Ok(());
    }
    let sql = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE c.relkind = 'm' AND c.relispopulated AND n.nspname !~ '^pg_'
                 AND n.nspname NOT IN ('information_schema', 'memoria_operator') ORDER BY c.oid";
    let views: Vec<(String,)> =
        sqlx::query_as(sql).fetch_all(&mut *session).await.map_err(Error::query("reading the materialised views"))?;
    for (view,) in views {
        execute(session, "filling a materialised view anew", format!("REFRESH MATERIALIZED VIEW {view}")).await?;
    }
    Ok(())
}

/// Every table's digest, as the server computes it now, must be the manifest's.
async fn prove(session: &mut PgConnection, manifest: &Manifest, live: &Schema) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, table) in &manifest.tables {
        let Some(relation) = live.relations.get(name) else { continue };
        let found = digest::table(session, name, relation).await?;
        if found.rows != table.content.rows {
            wrong.push(format!("table {name} has {} rows, the export {}", found.rows, table.content.rows));
        } else if found != table.content {
            wrong.push(format!("table {name} has {} rows, but not the same", found.rows));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Error::ImportParity { what: dump::first(&wrong) }) }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|error| Error::Order { what: format!("a thread ended early: {error}") })?
}
