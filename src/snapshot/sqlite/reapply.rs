//! Puts late writes back into the restored file: the same as `late::reapply` does to PostgreSQL. Triggers stay silent, since
//! what they made of a row is among the late rows; foreign keys are checked at the end.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use rusqlite::{Connection, ErrorCode, Statement, TransactionBehavior};
use tracing::warn;

use super::{
    digest, open_copy_for_rows, open_for_rows,
    schema::{self, Table},
};
use crate::{
    api::upgrade::TableLate,
    snapshot::{
        Error, Result,
        digest::{RowSums, TableDigest},
        hex,
        late::{
            Late,
            carry::Carry,
            reapplied::{self, Aside, Conflict, NAMED, Report, Why, unfit},
            set_aside::Chosen,
        },
        portable::{
            json,
            sqlite::{Field, Stored, row_hash},
        },
        quote_ident,
    },
};

pub struct Request<'a> {
    pub database: &'a Path,
    /// Where `late.json` lies.
    pub directory: &'a Path,
    pub late: &'a Late,
    /// Do all of it, and take it back.
    pub dry_run: bool,
}

/// Puts them back. An error means that nothing was changed; what stays aside is in the report.
pub fn reapply(request: &Request<'_>) -> Result<Report> {
    let path = request.database;
    let mut connection = open_for_rows(path)?;
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Exclusive).map_err(Error::sqlite("locking", path))?;
    let chosen = Chosen::all(request.directory, request.late);
    let report = Report { dry_run: request.dry_run, tables: within(&transaction, path, &chosen)? };
    let ended = if request.dry_run { transaction.rollback() } else { transaction.commit() };
    ended.map_err(Error::sqlite("ending the transaction in", path))?;
    Ok(report)
}

/// Puts what is to be carried forward into a copy that only this process knows. Rows that the file will never take stay
/// aside, so that no row can keep a restore from its end.
pub fn carry_forward(copy: &Path, carry: &Carry<'_>) -> Result<Vec<reapplied::Table>> {
    let mut connection = open_copy_for_rows(copy)?;
    let transaction = connection.transaction().map_err(Error::sqlite("beginning to write", copy))?;
    let chosen = carry.chosen();
    let done = within(&transaction, copy, &chosen);
    match &done {
        Ok(_) => transaction.commit().map_err(Error::sqlite("ending the transaction in", copy))?,
        // Which rolls back, unless the error did.
        Err(_) => drop(transaction),
    }
    connection.close().map_err(|(_, error)| Error::sqlite("closing", copy)(error))?;
    match done {
        Err(error) if is_final(&error) => {
            warn!("no late rows are carried forward");
            let why = "the file does not take them, or they cannot be read";
            Ok(chosen.tables.iter().map(|found| reapplied::Table::aside(found, Aside::because(why))).collect())
        }
        other => other,
    }
}

/// The same again would meet the same: it is neither a lock, nor want of space, nor the volume.
fn is_final(error: &Error) -> bool {
    let may_pass = |code| {
        matches!(
            code,
            ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::OutOfMemory
                | ErrorCode::OperationInterrupted
                | ErrorCode::PermissionDenied
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::DiskFull
                | ErrorCode::CannotOpen
        )
    };
    match error {
        Error::Unreadable { .. } => true,
        Error::Sqlite { source, .. } => !source.sqlite_error_code().is_some_and(may_pass),
        _ => false,
    }
}

fn within(connection: &Connection, path: &Path, chosen: &Chosen<'_>) -> Result<Vec<reapplied::Table>> {
    let live = schema::read(connection, path)?;
    let (mut tables, mut aside) = (Vec::new(), BTreeMap::new());
    for found in chosen.tables.iter().copied() {
        let name = found.table.as_str();
        let table = live.tables.get(name);
        let covered = chosen.late.columns.get(name).map(Vec::as_slice);
        let key = table.map(|table| table.primary_key.as_slice()).unwrap_or_default();
        let columns = table.map(|table| digest::columns(table).map(|(name, _)| name).collect());
        let why = unfit(covered, key, columns);
        let (None, Some(table), Some(file)) = (why.clone(), table, chosen.late.files.get(name)) else {
            aside.insert(name, why.unwrap_or_else(|| Aside::because("there is no file with its rows")));
            continue;
        };
        let (fields, file) = (Field::all(table), chosen.directory.join(file));
        let only_inserted = chosen.only_inserted;
        let late = LateTable { connection, path, found, table, fields, file, only_inserted };
        match late.look()? {
            Ok(todo) => tables.push((late, todo)),
            Err(why) => drop(aside.insert(name, why)),
        }
    }
    put_in(connection, path, &mut tables, &mut aside)?;
    let table = |found: &TableLate| match aside.remove(found.table.as_str()) {
        Some(why) => reapplied::Table::aside(found, why),
        None => {
            let todo = tables.iter().find(|(late, _)| late.found == found).map(|(_, todo)| *todo).unwrap_or_default();
            let [inserted, updated, deleted] = [todo.insert, todo.update, todo.delete];
            let (already, came) = (todo.already, todo.came.finish());
            reapplied::Table { inserted, updated, deleted, already, came, ..reapplied::Table::empty(&found.table) }
        }
    };
    Ok(chosen.tables.iter().copied().map(table).collect())
}

/// What there is to do with a table's rows, and the sums of the rows that come and go by it.
#[derive(Clone, Copy, Default)]
struct Todo {
    insert: i64,
    update: i64,
    delete: i64,
    already: i64,
    came: RowSums,
    went: RowSums,
}

impl Todo {
    fn count(&mut self, act: Act, row: &Row, found: Option<[u8; 32]>) {
        match act {
            Act::Already => self.already += 1,
            Act::Insert => self.insert += 1,
            Act::Update => self.update += 1,
            Act::Delete => self.delete += 1,
        }
        if matches!(act, Act::Insert | Act::Update) {
            self.came.add(&row_hash(row.values.iter().map(Stored::borrowed)));
        }
        if let (Act::Update | Act::Delete, Some(found)) = (act, found) {
            self.went.add(&found);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Already,
    Insert,
    Update,
    Delete,
}

/// One line of a file.
struct Row {
    change: String,
    before: Option<String>,
    hash: Option<String>,
    key: Vec<Stored>,
    /// In the order of the fields; of a deleted row none.
    values: Vec<Stored>,
    /// The key as it is written.
    told: String,
}

struct LateTable<'a> {
    connection: &'a Connection,
    path: &'a Path,
    found: &'a TableLate,
    table: &'a Table,
    fields: Vec<Field>,
    file: std::path::PathBuf,
    only_inserted: bool,
}

impl LateTable<'_> {
    fn name(&self) -> &str {
        &self.found.table
    }

    /// Reads all lines and changes nothing.
    fn look(&self) -> Result<Result<Todo, Aside>> {
        let (mut todo, mut conflicting, mut conflicts) = (Todo::default(), 0, Vec::new());
        self.each(|row, act, found| {
            match act {
                Ok(act) => todo.count(act, row, found),
                Err(why) => {
                    conflicting += 1;
                    if conflicts.len() < NAMED {
                        let key = serde_json::from_str(&row.told).unwrap_or_default();
                        conflicts.push(Conflict { change: row.change.clone(), key, why });
                    }
                }
            }
            Ok(())
        })?;
        Ok(if conflicting == 0 { Ok(todo) } else { Err(Aside::of_conflicts(conflicting, conflicts)) })
    }

    /// Does what `look` found.
    fn carry_out(&self) -> Result<()> {
        let name = format!("main.{}", quote_ident(self.name()));
        let written: Vec<_> = self.fields.iter().enumerate().filter(|(_, field)| !field.generated).collect();
        let columns: Vec<_> = written.iter().map(|(_, field)| quote_ident(&field.name)).collect();
        let places = |separator: &str, from: usize| {
            let each = columns.iter().enumerate().map(|(at, column)| format!("{column} = ?{}", from + at + 1));
            each.collect::<Vec<_>>().join(separator)
        };
        let all: Vec<_> = (1..=columns.len()).map(|at| format!("?{at}")).collect();
        let failed = |error| Error::sqlite(format!("putting late rows back into {} in", self.name()), self.path)(error);
        let prepare = |sql: String| self.connection.prepare(&sql).map_err(failed);
        let mut insert = prepare(format!("INSERT INTO {name} ({}) VALUES ({})", columns.join(", "), all.join(", ")))?;
        let mut update =
            prepare(format!("UPDATE {name} SET {} WHERE {}", places(", ", 0), self.same_key(columns.len())))?;
        let mut delete = prepare(format!("DELETE FROM {name} WHERE {}", self.same_key(0)))?;
        self.each(|row, act, _| {
            let bind = |statement: &mut Statement<'_>, values: &[&Stored]| {
                for (at, value) in values.iter().enumerate() {
                    statement.raw_bind_parameter(at + 1, value)?;
                }
                statement.raw_execute()
            };
            let values: Vec<_> = written.iter().filter_map(|(at, _)| row.values.get(*at)).collect();
            let key: Vec<_> = row.key.iter().collect();
            let done = match act {
                Ok(Act::Insert) => bind(&mut insert, &values),
                Ok(Act::Update) => bind(&mut update, &[values, key].concat()),
                Ok(Act::Delete) => bind(&mut delete, &key),
                // What was found before cannot have become a conflict: its key is named once.
                Ok(Act::Already) | Err(_) => Ok(0),
            };
            done.map(drop).map_err(failed)
        })
    }

    /// Shows every line, what has to be done with it or why it cannot be, and the hash of the row that has its key.
    fn each(&self, mut visit: impl FnMut(&Row, Result<Act, Why>, Option<[u8; 32]>) -> Result<()>) -> Result<()> {
        let columns: Vec<_> = self.fields.iter().map(|field| quote_ident(&field.name)).collect();
        let (columns, key) = (columns.join(", "), self.same_key(0));
        let sql = format!("SELECT {columns} FROM main.{} WHERE {key}", quote_ident(self.name()));
        let failed = |error| Error::sqlite(format!("comparing late rows with {} in", self.name()), self.path)(error);
        let mut select = self.connection.prepare(&sql).map_err(failed)?;
        let reading = || Error::io("reading", &self.file);
        let lines = BufReader::with_capacity(256 * 1024, File::open(&self.file).map_err(reading())?).lines();
        for (number, line) in (1..).zip(lines) {
            let line = line.map_err(reading())?;
            let unreadable = |what: json::Malformed| Error::Unreadable {
                path: self.file.clone(),
                row: number,
                what: what.to_string(),
            };
            let row = self.read(&line).map_err(unreadable)?;
            if self.only_inserted && row.change != "inserted" {
                continue;
            }
            let found = self.find(&mut select, &row.key).map_err(failed)?;
            visit(&row, act(&row, found), found)?;
        }
        Ok(())
    }

    fn read(&self, line: &str) -> Result<Row, json::Malformed> {
        let parts = parts(line)?;
        let raw = |name: &str| parts.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let text = |name: &str| raw(name).map(|quoted| quoted.trim_matches('"').to_owned());
        let told = raw("key").ok_or(json::Malformed("a line has no key"))?;
        let object = |text: &str, names: &mut dyn Iterator<Item = &Field>| {
            let mut members = Vec::new();
            json::members(text.as_bytes(), &mut members)?;
            let mut named = Vec::new();
            for member in &members {
                let mut name = Vec::new();
                json::read_string(text.as_bytes().get(member.key.clone()).unwrap_or_default(), &mut name)?;
                named.push((name, text.as_bytes().get(member.value.clone()).unwrap_or_default()));
            }
            names
                .map(|field| {
                    let found = named.iter().find(|(name, _)| name.as_slice() == field.name.as_bytes());
                    field.read(found.ok_or(json::Malformed("a column is missing"))?.1)
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let of_key = |name: &String| self.fields.iter().find(|field| field.name == *name);
        let key = object(told, &mut self.table.primary_key.iter().filter_map(of_key))?;
        let values = raw("row").map(|row| object(row, &mut self.fields.iter())).transpose()?.unwrap_or_default();
        let change = text("change").ok_or(json::Malformed("a line says no change"))?;
        Ok(Row { change, before: text("before"), hash: text("rowHash"), key, values, told: told.to_owned() })
    }

    fn find(&self, select: &mut Statement<'_>, key: &[Stored]) -> rusqlite::Result<Option<[u8; 32]>> {
        let mut rows = select.query(rusqlite::params_from_iter(key))?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let values: Result<Vec<_>, _> = (0..self.fields.len()).map(|at| row.get_ref(at)).collect();
        Ok(Some(row_hash(values?.into_iter())))
    }

    /// The key's columns at the parameters behind the first `from`.
    fn same_key(&self, from: usize) -> String {
        let columns = self.table.primary_key.iter().enumerate();
        let equal = columns.map(|(at, column)| format!("{} IS ?{}", quote_ident(column), from + at + 1));
        equal.collect::<Vec<_>>().join(" AND ")
    }
}

/// The members of a line: names and values as they are written.
fn parts(line: &str) -> Result<Vec<(&str, &str)>, json::Malformed> {
    let mut members = Vec::new();
    json::members(line.as_bytes(), &mut members)?;
    let part = |range: &std::ops::Range<usize>| line.get(range.clone()).unwrap_or_default();
    Ok(members.iter().map(|member| (part(&member.key).trim_matches('"'), part(&member.value))).collect())
}

fn act(row: &Row, found: Option<[u8; 32]>) -> Result<Act, Why> {
    let found = found.map(|hash| hex(&hash));
    let deleted = row.change == "deleted";
    if !deleted && Some(hex(&row_hash(row.values.iter().map(Stored::borrowed)))) != row.hash {
        return Err(Why::NotExact);
    }
    match (row.change.as_str(), found) {
        ("inserted", None) => Ok(Act::Insert),
        ("deleted", None) => Ok(Act::Already),
        (_, None) => Err(Why::Gone),
        (_, found) if !deleted && found == row.hash => Ok(Act::Already),
        ("inserted", _) => Err(Why::KeyTaken),
        (_, found) if found != row.before => Err(Why::Changed),
        ("deleted", _) => Ok(Act::Delete),
        _ => Ok(Act::Update),
    }
}

/// Carries out all tables' rows, without those that turn out to contradict the others, until every digest is as predicted
/// and no row points to one that is not there.
fn put_in<'a>(
    connection: &Connection,
    path: &Path,
    tables: &mut Vec<(LateTable<'a>, Todo)>,
    aside: &mut BTreeMap<&'a str, Aside>,
) -> Result<()> {
    let savepoint = |sql: &str| connection.execute_batch(sql).map_err(Error::sqlite("setting a savepoint in", path));
    let dangling_before = dangling(connection, path)?;
    let mut before = BTreeMap::new();
    for (late, _) in tables.iter() {
        before.insert(late.found.table.clone(), digest::table(connection, path, late.name(), late.table)?);
    }
    loop {
        savepoint("SAVEPOINT memoria_reapply")?;
        let Some((table, why)) = once(connection, path, tables, &before, &dangling_before)? else { break };
        savepoint("ROLLBACK TO memoria_reapply; RELEASE memoria_reapply")?;
        let all = !tables.iter().any(|(late, _)| late.name() == table);
        for (out, _) in tables.extract_if(.., |(late, _)| all || late.name() == table) {
            aside.insert(&out.found.table, Aside::because(why.clone()));
        }
    }
    savepoint("RELEASE memoria_reapply")
}

/// The table that has to stay aside, and why.
fn once(
    connection: &Connection,
    path: &Path,
    tables: &[(LateTable<'_>, Todo)],
    before: &BTreeMap<String, TableDigest>,
    dangling_before: &Dangling,
) -> Result<Option<(String, String)>> {
    for (late, _) in tables {
        match late.carry_out() {
            Err(Error::Sqlite { source, .. }) if source.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                return Ok(Some((late.name().to_owned(), "it would break a constraint of that table".to_owned())));
            }
            other => other?,
        }
    }
    for ((child, parent), count) in &dangling(connection, path)? {
        if *count > dangling_before.get(&(child.clone(), parent.clone())).copied().unwrap_or_default() {
            let ours = |name: &String| tables.iter().any(|(late, _)| late.name() == name);
            let table = if ours(child) { child } else { parent };
            return Ok(Some((
                table.clone(),
                format!("rows of {child} would point to rows of {parent} that are not there"),
            )));
        }
    }
    for (late, todo) in tables {
        let (came, went) = (todo.came.finish(), todo.went.finish());
        let expected = before.get(late.name()).and_then(|before| before.changed(&came, &went));
        if expected != Some(digest::table(connection, path, late.name(), late.table)?) {
            return Ok(Some((
                late.name().to_owned(),
                "putting them in changes other rows of that table, too".to_owned(),
            )));
        }
    }
    Ok(None)
}

/// By table and the table it points to: rows that point to none.
type Dangling = BTreeMap<(String, String), i64>;

fn dangling(connection: &Connection, path: &Path) -> Result<Dangling> {
    let read = |mut statement: Statement<'_>| {
        let rows = statement.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))?;
        rows.collect::<Result<Dangling, _>>()
    };
    connection
        .prepare("SELECT \"table\", parent, count(*) FROM pragma_foreign_key_check GROUP BY 1, 2")
        .and_then(read)
        .map_err(Error::sqlite("checking references in", path))
}
