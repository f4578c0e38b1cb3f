//! Reads the schema of one file.

use std::{collections::BTreeMap, path::Path};

use rusqlite::{Connection, Params, Row};

use super::{
    Column, Generated, Schema, Table, VirtualTable,
    text::{Token, closing, join, normal, normal_default, tokens},
};
use crate::snapshot::{Error, Result};

/// One object's line in `sqlite_schema`.
struct Object {
    kind: String,
    name: String,
    table: String,
    sql: Option<String>,
}

/// What `table_list` says of a table.
struct Listed {
    kind: String,
    without_rowid: bool,
    strict: bool,
}

/// Reads every object but SQLite's own.
pub fn read(connection: &Connection, path: &Path) -> Result<Schema> {
    let objects = rows(
        connection,
        path,
        "SELECT type, name, tbl_name, sql FROM main.sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
        [],
        |row| Ok(Object { kind: row.get(0)?, name: row.get(1)?, table: row.get(2)?, sql: row.get(3)? }),
    )?;
    let listed: BTreeMap<String, Listed> = rows(
        connection,
        path,
        "SELECT name, type, wr, strict FROM pragma_table_list WHERE schema = 'main'",
        [],
        |row| Ok((row.get(0)?, Listed { kind: row.get(1)?, without_rowid: row.get(2)?, strict: row.get(3)? })),
    )?
    .into_iter()
    .collect();
    let mut schema = Schema::default();
    for object in &objects {
        let sql = object.sql.as_deref().unwrap_or_default();
        match (object.kind.as_str(), listed.get(&object.name)) {
            ("view", _) => drop(schema.views.insert(object.name.clone(), normal(sql))),
            ("trigger", _) => drop(schema.triggers.insert(object.name.clone(), normal(sql))),
            ("table", listed) => {
                let pieces = tokens(sql);
                if let Some(module) = module(&pieces) {
                    schema.virtual_tables.insert(object.name.clone(), VirtualTable { module, sql: join(&pieces) });
                } else {
                    let indexes = objects.iter().filter(|o| o.kind == "index" && o.table == object.name);
                    let table = table(connection, path, &object.name, &pieces, indexes)?;
                    let shadow = listed.is_some_and(|listed| listed.kind == "shadow");
                    let strict = listed.is_some_and(|listed| listed.strict);
                    let without_rowid = listed.is_some_and(|listed| listed.without_rowid);
                    schema.tables.insert(object.name.clone(), Table { shadow, strict, without_rowid, ..table });
                }
            }
            _ => {}
        }
    }
    Ok(schema)
}

fn rows<T>(
    connection: &Connection,
    path: &Path,
    sql: &'static str,
    parameters: impl Params,
    row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let read = |mut statement: rusqlite::Statement<'_>| statement.query_map(parameters, row)?.collect();
    connection.prepare(sql).and_then(read).map_err(Error::sqlite("reading the schema of", path))
}

/// `CREATE VIRTUAL TABLE name USING module`.
fn module(pieces: &[Token]) -> Option<String> {
    let is_virtual = pieces.get(1).is_some_and(|token| token.is_word("virtual"));
    let using = pieces.iter().position(|token| token.is_word("using")).filter(|_| is_virtual)?;
    pieces.get(using + 1).and_then(Token::name).map(str::to_lowercase)
}

fn table<'a>(
    connection: &Connection,
    path: &Path,
    name: &str,
    pieces: &[Token],
    indexes: impl Iterator<Item = &'a Object>,
) -> Result<Table> {
    let mut table = Table { sql: join(pieces), checks: checks(pieces), ..Table::default() };
    let mut key: BTreeMap<i64, String> = BTreeMap::new();
    let columns = rows(
        connection,
        path,
        "SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?1, 'main')",
        [name],
        |row| {
            let (data_type, not_null, default): (String, bool, Option<String>) =
                (row.get(1)?, row.get(2)?, row.get(3)?);
            let generated = match row.get(5)? {
                2 => Some(Generated::Virtual),
                3 => Some(Generated::Stored),
                _ => None,
            };
            let column = Column {
                data_type: data_type.to_lowercase(),
                nullable: !not_null,
                default: default.as_deref().map(normal_default),
                collation: None,
                generated,
            };
            Ok((row.get::<_, String>(0)?, column, row.get::<_, i64>(4)?))
        },
    )?;
    for (column, mut found, place) in columns {
        if place > 0 {
            key.insert(place, column.clone());
        }
        let details = connection
            .column_metadata(Some("main"), name, column.as_str())
            .map_err(Error::sqlite("reading the schema of", path))?;
        let collation = details.1.map(|text| text.to_string_lossy().to_lowercase());
        found.collation = collation.filter(|collation| collation != "binary");
        table.autoincrement |= details.4;
        table.columns.insert(column, found);
    }
    table.primary_key = key.into_values().collect();
    let texts: BTreeMap<&str, &str> =
        indexes.filter_map(|index| Some((index.name.as_str(), index.sql.as_deref()?))).collect();
    for (index, unique, origin) in
        rows(connection, path, "SELECT name, \"unique\", origin FROM pragma_index_list(?1, 'main')", [name], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?, row.get::<_, String>(2)?))
        })?
    {
        if origin != "pk" {
            let columns = index_columns(connection, path, &index, texts.get(index.as_str()).copied())?;
            table.indexes.insert(format!("{}{columns}", if unique { "UNIQUE " } else { "" }));
        }
    }
    table.foreign_keys = foreign_keys(connection, path, name)?;
    Ok(table)
}

/// `(a, b COLLATE nocase DESC) where …`; of an index on expressions the text behind its table.
fn index_columns(connection: &Connection, path: &Path, index: &str, sql: Option<&str>) -> Result<String> {
    let parts = rows(
        connection,
        path,
        "SELECT name, \"desc\", coll FROM pragma_index_xinfo(?1, 'main') WHERE key ORDER BY seqno",
        [index],
        |row| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, bool>(1)?, row.get::<_, String>(2)?)),
    )?;
    let pieces = sql.map(tokens).unwrap_or_default();
    let opening = pieces.iter().position(|token| *token == Token::Symbol('('));
    let end = opening.and_then(|from| closing(&pieces, from));
    let condition = end.and_then(|end| pieces.get(end + 1..)).map(join).unwrap_or_default();
    let names: Option<Vec<String>> = parts
        .into_iter()
        .map(|(name, descending, collation)| {
            let collation = match collation.to_lowercase() {
                binary if binary == "binary" => String::new(),
                other => format!(" COLLATE {other}"),
            };
            name.map(|name| format!("{name}{collation}{}", if descending { " DESC" } else { "" }))
        })
        .collect();
    let columns = match (names, opening.zip(end)) {
        (Some(names), _) => format!("({})", names.join(", ")),
        (None, Some((from, to))) => pieces.get(from..=to).map(join).unwrap_or_default(),
        (None, None) => String::new(),
    };
    Ok(if condition.is_empty() { columns } else { format!("{columns} {condition}") })
}

fn foreign_keys(connection: &Connection, path: &Path, name: &str) -> Result<std::collections::BTreeSet<String>> {
    type Part = (i64, String, String, Option<String>, String, String);
    let parts: Vec<Part> = rows(
        connection,
        path,
        "SELECT id, \"table\", \"from\", \"to\", on_update, on_delete FROM pragma_foreign_key_list(?1, 'main') ORDER BY id, seq",
        [name],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?)),
    )?;
    let mut keys: BTreeMap<i64, (Vec<String>, Vec<String>, String, String)> = BTreeMap::new();
    for (id, parent, from, to, update, delete) in parts {
        let actions = [("UPDATE", update), ("DELETE", delete)];
        let actions = actions.iter().filter(|(_, action)| action != "NO ACTION");
        let actions: String = actions.map(|(on, action)| format!(" ON {on} {action}")).collect();
        let key = keys.entry(id).or_insert_with(|| (Vec::new(), Vec::new(), parent, actions));
        key.0.push(from);
        key.1.extend(to);
    }
    let mut texts = std::collections::BTreeSet::new();
    for (from, mut to, parent, actions) in keys.into_values() {
        if to.is_empty() {
            // Without columns it means the parent's key.
            to = rows(
                connection,
                path,
                "SELECT name FROM pragma_table_xinfo(?1, 'main') WHERE pk > 0 ORDER BY pk",
                [&parent],
                |row| row.get(0),
            )?;
        }
        texts.insert(format!("({}) REFERENCES {parent}({}){actions}", from.join(", "), to.join(", ")));
    }
    Ok(texts)
}

/// The conditions of all CHECK constraints, of columns and of the table.
fn checks(pieces: &[Token]) -> std::collections::BTreeSet<String> {
    let places = pieces.iter().enumerate().filter(|(_, token)| token.is_word("check")).map(|(at, _)| at + 1);
    places
        .filter(|at| pieces.get(*at) == Some(&Token::Symbol('(')))
        .filter_map(|at| pieces.get(at..=closing(pieces, at)?))
        .map(join)
        .collect()
}
