//! One side of a comparison: opened, read at one moment, and able to show its rows.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, types::ValueRef};
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;

use super::rows::{Entry, Spill};
use crate::snapshot::{
    Error, Result,
    digest::{self, DataDigest, row_hash},
    erase, manifest as exact,
    portable::{
        Input, Keys, Manifest, Progress,
        encryption::SUFFIX,
        json::write_string,
        manifest::{Found, find, read_schema},
        postgres, sqlite as portable_sqlite,
    },
    schema::{self, Schema},
    session::{self, execute},
    sqlite::{self, DATABASE, content, open_beside, open_copy},
    store::Place,
    url::DatabaseUrl,
};

/// What is compared.
#[derive(Clone, Debug)]
pub enum Side {
    Postgres {
        url: Box<DatabaseUrl>,
        application: String,
    },
    /// An SQLite file, in use or not.
    Sqlite(PathBuf),
    /// A portable export or an exact snapshot, by its manifest, and what an encrypted one is read with.
    Stored(Place, Keys),
}

pub(super) enum AnySchema {
    Postgres(Schema),
    Sqlite(sqlite::schema::Schema),
}

/// A side that was read.
pub(super) struct Opened {
    pub schema: AnySchema,
    pub data: DataDigest,
    rows: Rows,
}

/// Where its rows are.
enum Rows {
    /// The transaction that it was read in.
    Postgres(PgConnection),
    Sqlite(Option<Connection>, PathBuf),
    Portable(Place, Box<Manifest>, Keys),
    /// In a dump that only a server can read.
    Dump,
}

pub(super) async fn open(side: &Side, progress: &Progress) -> Result<Opened> {
    match side {
        Side::Postgres { url, application } => live(url, application, progress).await,
        Side::Sqlite(path) => {
            let path = path.clone();
            sqlite::blocking(move || {
                if !path.try_exists().map_err(Error::io("looking for", &path))? {
                    return Err(Error::FileMissing { path });
                }
                file(open_beside(&path)?, path)
            })
            .await
        }
        Side::Stored(place, keys) => {
            let (place, keys) = (place.clone(), keys.clone());
            sqlite::blocking(move || stored(&place, &keys)).await
        }
    }
}

async fn live(url: &DatabaseUrl, application: &str, progress: &Progress) -> Result<Opened> {
    let mut session = session::open(url, application).await?;
    execute(&mut session, "beginning the read", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let schema = schema::read(&mut session).await?;
    let data = digest::all(&mut session, &schema, |table, found| progress(table, found.rows, None)).await?;
    Ok(Opened { schema: AnySchema::Postgres(schema), data, rows: Rows::Postgres(session) })
}

fn file(connection: Connection, path: PathBuf) -> Result<Opened> {
    connection.execute_batch("BEGIN").map_err(Error::sqlite("beginning to read", &path))?;
    let content = content::read(&connection, &path)?;
    Ok(Opened {
        schema: AnySchema::Sqlite(content.schema),
        data: content.data,
        rows: Rows::Sqlite(Some(connection), path),
    })
}

fn stored(place: &Place, keys: &Keys) -> Result<Opened> {
    erase::refuse(place)?;
    match (find(place)?, place) {
        (Found::Nothing, _) => {
            let what = "it has no manifest.json; what has none was not finished";
            Err(Error::NoExport { path: place.name(), what })
        }
        (Found::Portable(manifest), _) => portable(place, manifest, keys),
        (Found::Exact, Place::Directory(directory)) => snapshot(directory),
        (Found::Exact, Place::Bucket(_)) => {
            let what = "it is an exact snapshot in a bucket; `memoria-operator snapshot fetch` it into a directory, and name that";
            Err(Error::NoExport { path: place.name(), what })
        }
    }
}

/// Rows are read from the files' bytes; the manifest's digests must be those.
fn portable(place: &Place, manifest: Box<Manifest>, keys: &Keys) -> Result<Opened> {
    keys.fit(place, &manifest)?;
    exact::verify_stored(place, &manifest.files)?;
    let damaged = |what: String| Error::Damaged { directory: place.name(), what };
    let files = manifest.inputs(place, keys);
    let mut data = DataDigest { sequences: manifest.sequences.clone(), ..DataDigest::default() };
    let schema = match manifest.engine.as_str() {
        postgres::ENGINE => {
            let schema: Schema = read_schema(place, &manifest, keys)?;
            for file in files {
                data.tables.extend(postgres::digest_file(&file, &schema)?.tables);
            }
            AnySchema::Postgres(schema)
        }
        portable_sqlite::ENGINE => {
            let schema: sqlite::schema::Schema = read_schema(place, &manifest, keys)?;
            for file in files {
                data.tables.extend(portable_sqlite::digest_file(&file, &schema)?.tables);
            }
            AnySchema::Sqlite(schema)
        }
        other => return Err(damaged(format!("its engine is {other:?}"))),
    };
    for (name, table) in &manifest.tables {
        // A table without rows is in no row.
        let found = data.tables.entry(name.clone()).or_insert_with(|| digest::RowSums::default().finish());
        if *found != table.content {
            return Err(damaged(format!("the rows of {name} are not those that its manifest tells of")));
        }
    }
    Ok(Opened { schema, data, rows: Rows::Portable(place.clone(), manifest, keys.clone()) })
}

fn snapshot(directory: &Path) -> Result<Opened> {
    let none = || Error::NoExport { path: directory.to_owned(), what: "its manifest went away" };
    let stored = exact::read(directory)?.ok_or_else(none)?;
    let is_sealed = |name: &String| directory.join(format!("{name}{SUFFIX}")).exists();
    if stored.manifest.encryption.is_some() && stored.manifest.files.keys().any(is_sealed) {
        let what = "it is an exact snapshot that is kept encrypted; `memoria-operator snapshot fetch` it into another directory, and name that";
        return Err(Error::NoExport { path: directory.to_owned(), what });
    }
    exact::verify_files(directory, &stored.manifest)?;
    if stored.manifest.kind == sqlite::KIND {
        let path = directory.join(DATABASE);
        return file(open_copy(&path)?, path);
    }
    let schema: Schema = exact::read_schema(directory, &stored.manifest)?;
    Ok(Opened { schema: AnySchema::Postgres(schema), data: stored.manifest.data(), rows: Rows::Dump })
}

impl Opened {
    pub fn engine(&self) -> &'static str {
        match self.schema {
            AnySchema::Postgres(_) => postgres::ENGINE,
            AnySchema::Sqlite(_) => portable_sqlite::ENGINE,
        }
    }

    /// Lays a table's rows out for the comparison; `None` where they cannot be read.
    pub async fn spill(&mut self, table: &str, texts: bool) -> Result<Option<Spill>> {
        let mut spill = Spill::new()?;
        match (&mut self.rows, &self.schema) {
            (Rows::Postgres(session), AnySchema::Postgres(schema)) => {
                let Some(relation) = schema.relations.get(table) else { return Ok(None) };
                let key = Key::of(relation.columns.keys(), &relation.primary_key);
                postgres::visit_table(session, table, relation, |values| {
                    spill.add(&key.entry(&values.collect::<Vec<_>>(), texts))
                })
                .await?;
                Ok(Some(spill))
            }
            (Rows::Sqlite(connection, path), AnySchema::Sqlite(schema)) => {
                let (Some(known), Some(open)) = (schema.tables.get(table).cloned(), connection.take()) else {
                    return Ok(None);
                };
                let (path, name) = (path.clone(), table.to_owned());
                let (open, spill) = sqlite::blocking(move || {
                    let key = SqliteKey::of(&known);
                    portable_sqlite::visit_table(&open, &path, &name, &known, |values| {
                        spill.add(&key.entry(values, texts))
                    })?;
                    Ok((open, spill))
                })
                .await?;
                *connection = Some(open);
                Ok(Some(spill))
            }
            (Rows::Portable(place, manifest, keys), schema) => {
                let Some(name) = manifest.tables.get(table).map(|table| table.file.clone()) else {
                    return Ok(None);
                };
                let file = Input { place: place.clone(), name, keys: keys.clone() };
                let name = table.to_owned();
                match schema {
                    AnySchema::Postgres(schema) => {
                        let schema = schema.clone();
                        sqlite::blocking(move || spill_postgres(&file, &schema, &name, texts, spill)).await.map(Some)
                    }
                    AnySchema::Sqlite(schema) => {
                        let schema = schema.clone();
                        sqlite::blocking(move || spill_sqlite(&file, &schema, &name, texts, spill)).await.map(Some)
                    }
                }
            }
            _ => Ok(None),
        }
    }
}

fn spill_postgres(file: &Input, schema: &Schema, table: &str, texts: bool, mut spill: Spill) -> Result<Spill> {
    let Some(relation) = schema.relations.get(table) else { return Ok(spill) };
    let key = Key::of(relation.columns.keys(), &relation.primary_key);
    postgres::visit_file(file, schema, |known, values| {
        if known.table == table { spill.add(&key.entry(&values.iter().collect::<Vec<_>>(), texts)) } else { Ok(()) }
    })?;
    Ok(spill)
}

fn spill_sqlite(
    file: &Input,
    schema: &sqlite::schema::Schema,
    table: &str,
    texts: bool,
    mut spill: Spill,
) -> Result<Spill> {
    let Some(known) = schema.tables.get(table) else { return Ok(spill) };
    let key = SqliteKey::of(known);
    portable_sqlite::visit_file(file, schema, |name, _, values| {
        if name != table {
            return Ok(());
        }
        let values: Vec<_> = values.iter().map(portable_sqlite::Stored::borrowed).collect();
        spill.add(&key.entry(&values, texts))
    })?;
    Ok(spill)
}

/// Which of a table's values are its primary key.
struct Key {
    columns: Vec<(usize, String)>,
}

impl Key {
    fn of<'a>(columns: impl Iterator<Item = &'a String>, key: &[String]) -> Self {
        let columns = columns.enumerate().filter(|(_, name)| key.contains(name));
        Self { columns: columns.map(|(at, name)| (at, name.clone())).collect() }
    }

    fn entry(&self, values: &[Option<&[u8]>], texts: bool) -> Entry {
        let row = row_hash(values.iter().copied());
        let key: Vec<_> = self.columns.iter().map(|(at, _)| values.get(*at).copied().flatten()).collect();
        let hash = if key.is_empty() { row } else { row_hash(key.iter().copied()) };
        let write =
            |at: usize, out: &mut Vec<u8>| write_string(key.get(at).copied().flatten().unwrap_or_default(), out);
        entry(&self.columns, hash, row, texts, write)
    }
}

struct SqliteKey {
    columns: Vec<(usize, String)>,
    fields: Vec<portable_sqlite::Field>,
}

impl SqliteKey {
    fn of(table: &sqlite::schema::Table) -> Self {
        let fields = portable_sqlite::Field::all(table);
        let columns = fields.iter().enumerate().filter(|(_, field)| table.primary_key.contains(&field.name));
        Self { columns: columns.map(|(at, field)| (at, field.name.clone())).collect(), fields }
    }

    fn entry(&self, values: &[ValueRef<'_>], texts: bool) -> Entry {
        let row = portable_sqlite::row_hash(values.iter().copied());
        let key: Vec<_> =
            self.columns.iter().filter_map(|(at, _)| Some((self.fields.get(*at)?, *values.get(*at)?))).collect();
        let hash = if key.is_empty() { row } else { portable_sqlite::row_hash(key.iter().map(|(_, value)| *value)) };
        let write = |at: usize, out: &mut Vec<u8>| {
            if let Some((field, value)) = key.get(at) {
                field.write(*value, out);
            }
        };
        entry(&self.columns, hash, row, texts, write)
    }
}

/// The key's text is an object of its columns.
fn entry(
    columns: &[(usize, String)],
    hash: [u8; 32],
    row: [u8; 32],
    texts: bool,
    write: impl Fn(usize, &mut Vec<u8>),
) -> Entry {
    let mut key = [0; 16];
    // Hashed once more, so that keys are divided evenly whatever the first bytes are of.
    key.copy_from_slice(Sha256::digest(hash).get(..16).unwrap_or(&[0; 16]));
    let mut text = Vec::new();
    if texts && !columns.is_empty() {
        text.push(b'{');
        for (at, (_, name)) in columns.iter().enumerate() {
            if at > 0 {
                text.extend_from_slice(b", ");
            }
            write_string(name.as_bytes(), &mut text);
            text.extend_from_slice(b": ");
            write(at, &mut text);
        }
        text.push(b'}');
    }
    Entry { key, row, text }
}
