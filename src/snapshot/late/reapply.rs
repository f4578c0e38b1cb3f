//! Puts late writes back into the restored database: each table's rows all or none, in one transaction, and only where that
//! is provable. A row goes in where its key is free, or where the row is what it was before; at the end the digest of every
//! table must be what was predicted from the hashes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgDatabaseError};
use tokio::sync::mpsc;
use tracing::warn;

use super::{
    Late,
    carry::Carry,
    json_columns,
    reapplied::{Aside, Conflict, NAMED, Report, Table, Why, unfit},
    set_aside::Chosen,
};
use crate::{
    api::upgrade::TableLate,
    snapshot::{
        digest::{self, DataDigest, TableDigest, hash_values_sql},
        error::{Error, Result},
        freeze,
        portable::json,
        quote_ident, quote_literal,
        restore::sequences,
        schema::{Relation, Schema},
        session::{self, execute},
        url::DatabaseUrl,
    },
};

/// So much of a file goes to the server at once.
const PIECE: usize = 1 << 20;
/// Pieces that wait for the server.
const WAITING: usize = 2;

pub struct Request<'a> {
    pub url: &'a DatabaseUrl,
    /// `application_name` of our session.
    pub application: &'a str,
    /// Where `late.json` lies.
    pub directory: &'a Path,
    pub late: &'a Late,
    /// Do all of it, and take it back.
    pub dry_run: bool,
}

/// Puts them back. An error means that nothing was changed; what stays aside is in the report.
pub async fn reapply(request: &Request<'_>) -> Result<Report> {
    let mut session = session::open(request.url, request.application).await?;
    let live = freeze::freeze(&mut session).await?;
    let before = digest::all(&mut session, &live, |_, _| {}).await?;
    let chosen = Chosen::all(request.directory, request.late);
    let tables = within(&mut session, (&live, &before), &chosen).await?;
    if !request.dry_run {
        // Last, because no rollback takes this back. It only ever goes forward, so that does no harm.
        move_sequences(&mut session, &live, &tables).await?;
    }
    let report = Report { dry_run: request.dry_run, tables };
    let end = if request.dry_run { "ROLLBACK" } else { "COMMIT" };
    execute(&mut session, "ending the transaction; the same command tells whether the rows are in", end).await?;
    let _ = session.close().await;
    Ok(report)
}

/// Puts what is to be carried forward into what the session's open transaction has restored: this schema, and `before`. Rows
/// that the server will never take stay aside, so that no row can keep the restore from its end.
pub async fn carry_forward(
    session: &mut PgConnection,
    (live, before): (&Schema, &DataDigest),
    carry: &Carry<'_>,
) -> Result<Vec<Table>> {
    let chosen = carry.chosen();
    execute(session, "setting a savepoint", "SAVEPOINT memoria_carry").await?;
    match within(session, (live, before), &chosen).await {
        Err(error) if is_final(&error) => {
            execute(session, "taking back what went in", "ROLLBACK TO SAVEPOINT memoria_carry").await?;
            let why = match error.sqlstate() {
                Some(code) => format!("the server refuses it ({code})"),
                None => "its file cannot be read".to_owned(),
            };
            warn!(why, "no late rows are carried forward");
            Ok(chosen.tables.iter().map(|found| Table::aside(found, Aside::because(why.clone()))).collect())
        }
        other => other,
    }
}

/// The same again would meet the same: it is neither the connection, nor a lock, nor want of space.
fn is_final(error: &Error) -> bool {
    const MAY_PASS: [&str; 7] = ["08", "40", "53", "55", "57", "58", "XX"];
    match error {
        Error::Unreadable { .. } => true,
        _ => error.sqlstate().is_some_and(|code| !MAY_PASS.contains(&code.get(..2).unwrap_or_default())),
    }
}

/// A table whose rows the server has in a temporary table, each with what has to be done.
struct Staged<'a> {
    found: &'a TableLate,
    relation: &'a Relation,
    /// The temporary table.
    stage: String,
    todo: Todo,
}

struct Todo {
    insert: i64,
    update: i64,
    delete: i64,
    already: i64,
    /// Sums over the rows that come and go by it.
    came: TableDigest,
    went: TableDigest,
}

impl Staged<'_> {
    fn name(&self) -> &str {
        &self.found.table
    }

    /// Its schema and its name.
    fn place(&self) -> [String; 2] {
        [&self.relation.schema, &self.relation.name].map(String::clone)
    }
}

async fn within(
    session: &mut PgConnection,
    (live, before): (&Schema, &DataDigest),
    chosen: &Chosen<'_>,
) -> Result<Vec<Table>> {
    let relations: BTreeMap<&str, &Relation> = live.tables().collect();
    let (mut staged, mut aside) = (Vec::new(), BTreeMap::new());
    for (number, found) in chosen.tables.iter().copied().enumerate() {
        let name = found.table.as_str();
        let relation = relations.get(name).copied();
        let covered = chosen.late.columns.get(name).map(Vec::as_slice);
        let key = relation.map(|relation| relation.primary_key.as_slice()).unwrap_or_default();
        let why = unfit(covered, key, relation.map(|relation| relation.columns.keys().collect()));
        let (None, Some(relation), Some(file)) = (why.clone(), relation, chosen.late.files.get(name)) else {
            aside.insert(name, why.unwrap_or_else(|| Aside::because("there is no file with its rows")));
            continue;
        };
        let stage = format!("pg_temp.memoria_late_{number}");
        let file = chosen.directory.join(file);
        match stage_rows(session, (name, relation), &stage, (&file, chosen.only_inserted)).await? {
            Ok(todo) => staged.push(Staged { found, relation, stage, todo }),
            Err(why) => drop(aside.insert(name, why)),
        }
    }
    put_in(session, (live, before), &mut staged, &mut aside).await?;
    let table = |found: &TableLate| match aside.remove(found.table.as_str()) {
        Some(why) => Table::aside(found, why),
        None => {
            let empty = Table::empty(&found.table);
            let Some(Staged { todo, .. }) = staged.iter().find(|staged| staged.name() == found.table) else {
                return empty;
            };
            let Todo { insert, update, delete, already, .. } = *todo;
            Table { inserted: insert, updated: update, deleted: delete, already, came: todo.came.clone(), ..empty }
        }
    };
    Ok(chosen.tables.iter().copied().map(table).collect())
}

/// Gives the server a file's rows, and has it find out what has to be done with each.
async fn stage_rows(
    session: &mut PgConnection,
    (name, relation): (&str, &Relation),
    stage: &str,
    (file, only_inserted): (&Path, bool),
) -> Result<Result<Todo, Aside>> {
    execute(session, "setting a savepoint", "SAVEPOINT memoria_stage").await?;
    let filled = match fill(session, (name, relation), stage, (file, only_inserted)).await {
        Ok(()) => classify(session, name, relation, stage).await,
        Err(error) => Err(error),
    };
    match filled.map_err(refusal) {
        Ok(()) => counted(session, name, relation, stage).await,
        Err(Refused::Never(error)) => Err(error),
        Err(Refused::Rows { why, .. }) => {
            execute(session, "leaving a table out", "ROLLBACK TO SAVEPOINT memoria_stage").await?;
            Ok(Err(Aside::because(format!("the server does not take its rows: {why}"))))
        }
    }
}

async fn fill(
    session: &mut PgConnection,
    (name, relation): (&str, &Relation),
    stage: &str,
    (file, only_inserted): (&Path, bool),
) -> Result<()> {
    let table = stage.trim_start_matches("pg_temp.");
    let make = format!(
        "CREATE TEMPORARY TABLE {table} (change text NOT NULL, before text, hash text, nulls jsonb, row {name},
         todo text NOT NULL DEFAULT '') ON COMMIT DROP"
    );
    execute(session, "making a place for late writes", make).await?;
    let insert = format!(
        "INSERT INTO {stage} (change, before, hash, nulls, row)
         SELECT l.change, l.before, l.hash, l.nulls::jsonb, json_populate_record(NULL::{name}, l.row::json)
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS l (change, before, hash, nulls, row)"
    );
    let (sender, mut pieces) = mpsc::channel(WAITING);
    let path = file.to_owned();
    let reading = tokio::task::spawn_blocking(move || read((&path, only_inserted), &sender));
    let mut sent = Ok(());
    while let Some(Piece { change, before, hash, nulls, row, .. }) = pieces.recv().await {
        let statement = sqlx::query(AssertSqlSafe(insert.clone())).bind(change).bind(before).bind(hash).bind(nulls);
        let done = statement.bind(row).execute(&mut *session).await;
        sent = done.map(drop).map_err(Error::query(format!("reading what was written late to {name}")));
        if sent.is_err() {
            break;
        }
    }
    drop(pieces);
    reading.await.map_err(|error| Error::Order { what: format!("a thread ended early: {error}") })??;
    sent?;
    for column in json_columns(relation) {
        let (quoted, literal) = (quote_ident(column), quote_literal(column));
        let sql = format!("UPDATE {stage} SET row.{quoted} = 'null' WHERE jsonb_exists(nulls, {literal})");
        execute(session, "setting apart JSON's own null", sql).await?;
    }
    Ok(())
}

/// Some lines of a file, column by column.
#[derive(Default)]
struct Piece {
    change: Vec<String>,
    before: Vec<Option<String>>,
    hash: Vec<Option<String>>,
    nulls: Vec<Option<String>>,
    row: Vec<String>,
    bytes: usize,
}

/// Hands a file's lines on. A receiver that went away is no error: whoever has it knows why.
fn read((file, only_inserted): (&Path, bool), pieces: &mpsc::Sender<Piece>) -> Result<()> {
    let failed = || Error::io("reading", file);
    let lines = BufReader::with_capacity(256 * 1024, File::open(file).map_err(failed())?).lines();
    let mut piece = Piece::default();
    for (number, line) in (1..).zip(lines) {
        let line = line.map_err(failed())?;
        piece.take(&line, only_inserted).map_err(|error| unreadable(file, number, error.to_string()))?;
        if piece.bytes >= PIECE && pieces.blocking_send(std::mem::take(&mut piece)).is_err() {
            return Ok(());
        }
    }
    let _ = pieces.blocking_send(piece);
    Ok(())
}

fn unreadable(file: &Path, row: u64, what: String) -> Error {
    Error::Unreadable { path: PathBuf::from(file), row, what }
}

impl Piece {
    /// Takes the parts of a line as they are written: a number that is parsed and written again might be another one.
    fn take(&mut self, line: &str, only_inserted: bool) -> Result<(), json::Malformed> {
        let mut members = Vec::new();
        json::members(line.as_bytes(), &mut members)?;
        let raw = |name: &str| {
            let found = members.iter().find(|member| line.get(member.key.clone()) == Some(&format!("\"{name}\"")));
            found.and_then(|member| line.get(member.value.clone())).map(str::to_owned)
        };
        let text = |name: &str| raw(name).map(|quoted| quoted.trim_matches('"').to_owned());
        let change = text("change").ok_or(json::Malformed("a line says no change"))?;
        if only_inserted && change != "inserted" {
            return Ok(());
        }
        self.change.push(change);
        self.before.push(text("before"));
        self.hash.push(text("rowHash"));
        // Of a deleted row the key is all there is.
        self.row.push(raw("row").or_else(|| raw("key")).ok_or(json::Malformed("a line has neither key nor row"))?);
        self.nulls.push(raw("jsonNull"));
        self.bytes += line.len();
        Ok(())
    }
}

/// Writes beside each row what has to be done: `insert`, `update`, `delete`, `already`, or why it cannot be.
async fn classify(session: &mut PgConnection, name: &str, relation: &Relation, stage: &str) -> Result<()> {
    let of_row = |column: &String| format!("(late.row).{}", quote_ident(column));
    let same_key: Vec<_> =
        relation.primary_key.iter().map(|column| format!("{} = {}", quote_ident(column), of_row(column))).collect();
    let sql = format!(
        "UPDATE {stage} AS target SET todo = CASE
           WHEN compared.change <> 'deleted' AND compared.exact IS DISTINCT FROM compared.hash THEN 'notExact'
           WHEN compared.change = 'inserted' AND compared.found IS NULL THEN 'insert'
           WHEN compared.change = 'deleted' AND compared.found IS NULL THEN 'already'
           WHEN compared.found IS NULL THEN 'gone'
           WHEN compared.change <> 'deleted' AND compared.found = compared.hash THEN 'already'
           WHEN compared.change = 'inserted' THEN 'keyTaken'
           WHEN compared.found IS DISTINCT FROM compared.before THEN 'changed'
           WHEN compared.change = 'deleted' THEN 'delete'
           ELSE 'update' END
         FROM (SELECT late.ctid AS at, late.change, late.before, late.hash,
                      encode({exact}, 'hex') AS exact, live.hash AS found
               FROM {stage} AS late LEFT JOIN LATERAL
                    (SELECT encode({found}, 'hex') AS hash FROM ONLY {name} AS whole_row WHERE {same_key}) AS live
                    ON true) AS compared
         WHERE compared.at = target.ctid",
        exact = hash_values_sql(relation.columns.keys().map(of_row)),
        found = digest::hash_sql(relation.columns.keys()),
        same_key = same_key.join(" AND "),
    );
    execute(session, "comparing late writes with the database", sql).await
}

/// How much there is to do, or what contradicts it.
async fn counted(
    session: &mut PgConnection,
    name: &str,
    relation: &Relation,
    stage: &str,
) -> Result<Result<Todo, Aside>> {
    let doing = || Error::query(format!("comparing late writes with {name}"));
    let todo: Vec<(String, i64)> =
        sqlx::query_as(AssertSqlSafe(format!("SELECT todo, count(*) FROM {stage} GROUP BY todo")))
            .fetch_all(&mut *session)
            .await
            .map_err(doing())?;
    let count = |wanted: &str| todo.iter().find(|(todo, _)| todo == wanted).map_or(0, |(_, count)| *count);
    let done = ["insert", "update", "delete", "already"].map(count);
    let conflicting = todo.iter().map(|(_, count)| count).sum::<i64>() - done.iter().sum::<i64>();
    if conflicting == 0 {
        let [insert, update, delete, already] = done;
        let hashes = |column: &str, todo: &str| format!("SELECT {column} AS hash FROM {stage} WHERE todo IN ({todo})");
        let came = digest::of_hashes(session, name, &hashes("hash", "'insert', 'update'")).await?;
        let went = digest::of_hashes(session, name, &hashes("before", "'update', 'delete'")).await?;
        return Ok(Ok(Todo { insert, update, delete, already, came, went }));
    }
    let key: Vec<_> = relation
        .primary_key
        .iter()
        .map(|column| format!("{}, (row).{}::text", quote_literal(column), quote_ident(column)))
        .collect();
    let sql = format!(
        "SELECT change, todo, json_build_object({})::text FROM {stage}
         WHERE todo NOT IN ('insert', 'update', 'delete', 'already') ORDER BY ctid LIMIT {NAMED}",
        key.join(", ")
    );
    let named: Vec<(String, String, String)> =
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(session).await.map_err(doing())?;
    let conflicts = named.into_iter().filter_map(|(change, todo, key)| {
        let why = Why::ALL.into_iter().find(|why| serde_json::to_value(why).is_ok_and(|word| word == todo))?;
        Some(Conflict { change, key: serde_json::from_str(&key).ok()?, why })
    });
    Ok(Err(Aside::of_conflicts(conflicting, conflicts.collect())))
}

/// Carries out what was found, without the tables that turn out to contradict the others, until all of the rest is in
/// and every digest is as predicted.
async fn put_in<'a>(
    session: &mut PgConnection,
    (live, before): (&Schema, &DataDigest),
    staged: &mut Vec<Staged<'a>>,
    aside: &mut BTreeMap<&'a str, Aside>,
) -> Result<()> {
    let references = references(session).await?;
    loop {
        execute(session, "setting a savepoint", "SAVEPOINT memoria_reapply").await?;
        let (table, why) = match once(session, (live, before), staged, &references).await {
            Ok(()) => break,
            Err(Refused::Never(error)) => return Err(error),
            Err(Refused::Rows { table, why }) => (table, why),
        };
        execute(session, "taking back what went in", "ROLLBACK TO SAVEPOINT memoria_reapply").await?;
        // The server names the table that a reference leads from; ours may be at its other end.
        let at_fault = |staged: &Staged<'_>| table.as_ref() == Some(&staged.place());
        let all = !staged.iter().any(at_fault);
        for out in staged.extract_if(.., |staged| all || at_fault(staged)) {
            aside.insert(&out.found.table, Aside::because(why.clone()));
        }
    }
    Ok(())
}

/// Keys that were inserted are not given out again.
async fn move_sequences(session: &mut PgConnection, live: &Schema, tables: &[Table]) -> Result<()> {
    let inserted: Vec<_> = tables.iter().filter(|table| table.inserted > 0).map(|t| t.table.clone()).collect();
    let positions = digest::sequences(session, live).await?;
    let highest = sequences::highest(session, live, &inserted).await?;
    sequences::forward(session, live, &positions, &highest).await.map(drop)
}

/// Why something was not done.
enum Refused {
    /// The rows are at fault, those of one table where that is known: its schema and its name.
    Rows {
        table: Option<[String; 2]>,
        why: String,
    },
    Never(Error),
}

/// Tells what the server has against the rows from what has nothing to do with them. Its own words would show values.
fn refusal(error: Error) -> Refused {
    let Error::Query { source, .. } = &error else { return Refused::Never(error) };
    let database = source.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    let Some(database) = database else { return Refused::Never(error) };
    let code = database.code();
    let why = match (code.get(..2).unwrap_or_default(), database.constraint()) {
        ("23", Some(constraint)) => format!("it would break the constraint {constraint}"),
        ("23" | "22" | "44" | "P0", _) => format!("the server refuses it ({code})"),
        _ => return Refused::Never(error),
    };
    let table = database.schema().zip(database.table());
    Refused::Rows { table: table.map(|(schema, name)| [schema, name].map(str::to_owned)), why }
}

async fn once(
    session: &mut PgConnection,
    (live, before): (&Schema, &DataDigest),
    staged: &[Staged<'_>],
    references: &BTreeSet<(String, String)>,
) -> Result<(), Refused> {
    let order = parents_first(staged, references);
    for staged in &order {
        let of_table = |error| of_table(refusal(error), staged);
        insert(session, staged).await.map_err(of_table)?;
        update(session, staged).await.map_err(of_table)?;
    }
    for staged in order.iter().rev() {
        delete(session, staged).await.map_err(|error| of_table(refusal(error), staged))?;
    }
    execute(session, "checking deferred constraints", "SET CONSTRAINTS ALL IMMEDIATE").await.map_err(refusal)?;
    let after = digest::all(session, live, |_, _| {}).await.map_err(Refused::Never)?;
    for (name, found) in &after.tables {
        let staged = staged.iter().find(|staged| staged.name() == name);
        let was = before.tables.get(name);
        let expected = match staged {
            Some(Staged { todo, .. }) => was.and_then(|was| was.changed(&todo.came, &todo.went)),
            None => was.cloned(),
        };
        if expected.as_ref() != Some(found) {
            let why = format!("putting them in changes {name} otherwise than predicted, by a trigger or a reference");
            return Err(Refused::Rows { table: staged.map(Staged::place), why });
        }
    }
    Ok(())
}

/// What is wrong with a statement on a table is that table's affair, whoever the server names.
fn of_table(refused: Refused, staged: &Staged<'_>) -> Refused {
    match refused {
        Refused::Rows { why, .. } => Refused::Rows { table: Some(staged.place()), why },
        never => never,
    }
}

async fn insert(session: &mut PgConnection, staged: &Staged<'_>) -> Result<()> {
    if staged.todo.insert == 0 {
        return Ok(());
    }
    let columns: Vec<_> = written(staged.relation).map(|column| quote_ident(column)).collect();
    let values: Vec<_> = columns.iter().map(|column| format!("(row).{column}")).collect();
    let sql = format!(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} WHERE todo = 'insert'",
        staged.name(),
        columns.join(", "),
        values.join(", "),
        staged.stage
    );
    execute(session, "inserting late rows", sql).await
}

async fn update(session: &mut PgConnection, staged: &Staged<'_>) -> Result<()> {
    let fixed = |column: &&String| {
        let always = staged.relation.columns.get(*column).and_then(|column| column.identity.as_deref());
        staged.relation.primary_key.contains(column) || always == Some("always")
    };
    let set: Vec<_> = written(staged.relation)
        .filter(|column| !fixed(column))
        .map(|column| format!("{0} = (late.row).{0}", quote_ident(column)))
        .collect();
    if staged.todo.update == 0 || set.is_empty() {
        return Ok(());
    }
    let (name, stage) = (staged.name(), &staged.stage);
    let sql = format!(
        "UPDATE ONLY {name} AS live SET {} FROM {stage} AS late WHERE late.todo = 'update' AND {}",
        set.join(", "),
        same_row(staged.relation)
    );
    execute(session, "updating late rows", sql).await
}

async fn delete(session: &mut PgConnection, staged: &Staged<'_>) -> Result<()> {
    if staged.todo.delete == 0 {
        return Ok(());
    }
    let (name, stage, same) = (staged.name(), &staged.stage, same_row(staged.relation));
    let sql = format!("DELETE FROM ONLY {name} AS live USING {stage} AS late WHERE late.todo = 'delete' AND {same}");
    execute(session, "deleting late rows", sql).await
}

/// What the server does not compute itself.
fn written(relation: &Relation) -> impl Iterator<Item = &String> {
    relation.columns.iter().filter(|(_, column)| !column.generated).map(|(name, _)| name)
}

fn same_row(relation: &Relation) -> String {
    let equal = relation.primary_key.iter().map(|column| format!("live.{0} = (late.row).{0}", quote_ident(column)));
    equal.collect::<Vec<_>>().join(" AND ")
}

/// Which table refers to which by foreign keys.
async fn references(session: &mut PgConnection) -> Result<BTreeSet<(String, String)>> {
    let sql = "SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_catalog.pg_constraint
               WHERE contype = 'f'";
    let found: Vec<(String, String)> =
        sqlx::query_as(sql).fetch_all(session).await.map_err(Error::query("reading the foreign keys"))?;
    Ok(found.into_iter().collect())
}

/// Tables after those that they refer to; in a circle, in the order of their names.
fn parents_first<'s, 'a>(staged: &'s [Staged<'a>], references: &BTreeSet<(String, String)>) -> Vec<&'s Staged<'a>> {
    let mut waiting: Vec<&Staged<'a>> = staged.iter().collect();
    waiting.sort_by_key(|staged| staged.name());
    let mut order = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let refers = |from: &Staged<'_>, to: &Staged<'_>| {
            from.name() != to.name() && references.contains(&(from.name().to_owned(), to.name().to_owned()))
        };
        let free = waiting.iter().position(|from| !waiting.iter().any(|to| refers(from, to)));
        order.push(waiting.remove(free.unwrap_or_default()));
    }
    order
}
