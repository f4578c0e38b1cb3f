//! Finds what was inserted, updated and deleted since a baseline, and writes those rows out, one JSON a line.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{
    Baseline, HASH, KEY, KeptTable, Late, json_columns, key_json_sql, key_sql, lines_sql,
    set_aside::{Output, file_name},
};
use crate::{
    api::upgrade::TableLate,
    snapshot::{
        error::{Error, Result},
        quote_ident, quote_literal,
        schema::{Relation, Schema},
    },
};

/// So many changed rows are asked for in one reading of their table.
const CHUNK: usize = 20_000;

/// Compares what the session's transaction sees with the baseline in `kept`, whose files were verified. Rows go into
/// `directory`, keys that are still to be asked for into `scratch`.
pub async fn compare(
    session: &mut PgConnection,
    schema: &Schema,
    (kept, baseline, sha256): (&Path, &Baseline, &str),
    directory: &Path,
    scratch: &Path,
) -> Result<Late> {
    let mut late = Late::new(sha256);
    for (number, sides) in sides(schema, kept, baseline).into_iter().enumerate() {
        let mut output = Output::create(directory.join(file_name(number + 1)))?;
        let mut spool = Output::create(scratch.join("late.keys"))?;
        // Deleted keys are written at once, the others' kept for asking for their rows.
        let found = sides.merge(session, |difference| match difference {
            Difference::Inserted(line) => spool.line(format!("{}{}i", line.key(), line.hash()).as_bytes()),
            Difference::Updated { now, before } => {
                spool.line(format!("{}{}u{}", now.key(), now.hash(), before.hash()).as_bytes())
            }
            Difference::Deleted(line) => output.line(line.deleted().as_bytes()),
        });
        let found = found.await?;
        let spool = spool.finish()?;
        if let Some(table) = sides.live {
            rows(session, (sides.name, table), &spool, &mut output).await?;
        }
        let _ = fs::remove_file(&spool);
        let columns = sides.live.map(|table| table.columns.keys().cloned().collect());
        late.add(found, columns.unwrap_or_default(), output)?;
    }
    late.keep(directory)?;
    Ok(late)
}

/// Counts what differs, and sets nothing aside: by table those with any, most first.
pub async fn count(
    session: &mut PgConnection,
    schema: &Schema,
    (kept, baseline): (&Path, &Baseline),
) -> Result<Vec<TableLate>> {
    let mut tables = Vec::new();
    for sides in sides(schema, kept, baseline) {
        let found = sides.merge(session, |_| Ok(())).await?;
        if found.rows() > 0 {
            tables.push(found);
        }
    }
    tables.sort_by_key(|table| std::cmp::Reverse(table.rows()));
    Ok(tables)
}

/// Every table of either side, by name.
fn sides<'a>(schema: &'a Schema, kept: &'a Path, baseline: &'a Baseline) -> Vec<Sides<'a>> {
    let live: BTreeMap<&str, &Relation> = schema.tables().collect();
    let names: BTreeSet<&str> = live.keys().copied().chain(baseline.tables.keys().map(String::as_str)).collect();
    let of = |name| Sides {
        name,
        live: live.get(name).copied(),
        kept: baseline.tables.get(name).map(|table| (kept, table)),
    };
    names.into_iter().map(of).collect()
}

/// How a row differs from the baseline.
enum Difference<'a> {
    Inserted(&'a Line),
    Updated { now: &'a Line, before: &'a Line },
    Deleted(&'a Line),
}

/// One table, now and at the baseline.
struct Sides<'a> {
    name: &'a str,
    live: Option<&'a Relation>,
    kept: Option<(&'a Path, &'a KeptTable)>,
}

impl Sides<'_> {
    /// Walks both sides in step, and tells each row that differs.
    async fn merge(
        &self,
        session: &mut PgConnection,
        mut tell: impl FnMut(Difference<'_>) -> Result<()>,
    ) -> Result<TableLate> {
        let mut found = TableLate { table: self.name.to_owned(), ..TableLate::default() };
        let sql = self.live.map(|table| lines_sql(self.name, table));
        let mut now = Live { name: self.name, stream: None, pending: Vec::new(), start: 0 };
        if let Some(sql) = &sql {
            let doing = Error::query(format!("comparing {} with its baseline", self.name));
            let stream = session.copy_out_raw(sql).await.map_err(doing)?;
            now.stream = Some(stream.map_ok(|piece| piece.to_vec()).boxed());
        }
        let mut then = Then::open(self.kept).await?;
        let (mut here, mut there) = (now.next().await?, then.next().await?);
        loop {
            let order = match (&here, &there) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(here), Some(there)) => here.key().cmp(there.key()),
            };
            match (&here, &there) {
                (Some(line), _) if order == Ordering::Less => {
                    found.inserted += 1;
                    tell(Difference::Inserted(line))?;
                }
                (_, Some(line)) if order == Ordering::Greater => {
                    found.deleted += 1;
                    tell(Difference::Deleted(line))?;
                }
                (Some(line), Some(before)) if line.hash() != before.hash() => {
                    found.updated += 1;
                    tell(Difference::Updated { now: line, before })?;
                }
                _ => {}
            }
            if order != Ordering::Greater {
                here = now.next().await?;
            }
            if order != Ordering::Less {
                there = then.next().await?;
            }
        }
        Ok(found)
    }
}

/// One line of either side: ASCII up to the key's JSON.
struct Line(String);

impl Line {
    fn new(bytes: &[u8], name: &str) -> Result<Self> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        if text.len() < KEY + HASH || !text.is_char_boundary(KEY) || !text.is_char_boundary(KEY + HASH) {
            return Err(Error::Order { what: format!("a line of {name} has no key and hash") });
        }
        Ok(Self(text))
    }

    fn key(&self) -> &str {
        self.0.get(..KEY).unwrap_or_default()
    }

    fn hash(&self) -> &str {
        self.0.get(KEY..KEY + HASH).unwrap_or_default()
    }

    fn deleted(&self) -> String {
        // COPY doubles the backslash, and JSON has no other character that COPY writes differently.
        let key = self.0.get(KEY + HASH..).unwrap_or_default().replace("\\\\", "\\");
        if key.is_empty() {
            format!("{{\"change\":\"deleted\",\"rowHash\":\"{}\"}}", self.hash())
        } else {
            format!("{{\"change\":\"deleted\",\"key\":{key},\"before\":\"{}\"}}", self.hash())
        }
    }
}

/// The database's side, as it comes over the wire.
struct Live<'a, 'c> {
    name: &'a str,
    stream: Option<BoxStream<'c, sqlx::Result<Vec<u8>>>>,
    /// What came and was not yet given, from `start` on.
    pending: Vec<u8>,
    start: usize,
}

impl Live<'_, '_> {
    async fn next(&mut self) -> Result<Option<Line>> {
        loop {
            let rest = self.pending.get(self.start..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = Line::new(rest.get(..end).unwrap_or_default(), self.name)?;
                self.start += end + 1;
                return Ok(Some(line));
            }
            let Some(stream) = &mut self.stream else { return Ok(None) };
            let doing = Error::query(format!("comparing {} with its baseline", self.name));
            match stream.try_next().await.map_err(doing)? {
                Some(piece) => {
                    self.pending.drain(..self.start);
                    self.start = 0;
                    self.pending.extend_from_slice(&piece);
                }
                None => self.stream = None,
            }
        }
    }
}

/// The baseline's side, read from storage.
struct Then<'a> {
    name: &'a str,
    reader: Option<BufReader<tokio::fs::File>>,
    path: PathBuf,
}

impl<'a> Then<'a> {
    async fn open(kept: Option<(&'a Path, &'a KeptTable)>) -> Result<Self> {
        let Some((directory, table)) = kept else {
            return Ok(Self { name: "", reader: None, path: PathBuf::new() });
        };
        let path = directory.join(&table.file);
        let file = tokio::fs::File::open(&path).await.map_err(Error::io("reading", &path))?;
        Ok(Self { name: &table.file, reader: Some(BufReader::with_capacity(256 * 1024, file)), path })
    }

    async fn next(&mut self) -> Result<Option<Line>> {
        let Some(reader) = &mut self.reader else { return Ok(None) };
        let mut line = Vec::new();
        let read = reader.read_until(b'\n', &mut line).await.map_err(Error::io("reading", &self.path))?;
        if read == 0 { Ok(None) } else { Line::new(line.trim_ascii_end(), self.name).map(Some) }
    }
}

/// What `spool` says of a key: how its row was changed, how often, its hash, and the one it had before.
struct Spooled {
    updated: bool,
    times: u64,
    hash: String,
    before: String,
}

impl Spooled {
    /// Key, hash, change and the hash before, as `merge` wrote them.
    fn read(line: &str) -> Option<(&str, Self)> {
        let (key, rest) = line.split_at_checked(KEY)?;
        let (hash, rest) = rest.split_at_checked(HASH)?;
        let (change, before) = rest.split_at_checked(1)?;
        Some((key, Self { updated: change == "u", times: 0, hash: hash.to_owned(), before: before.to_owned() }))
    }
}

/// Writes the rows whose keys lie in `spool`: each key's first row, with how often it was inserted.
async fn rows(
    session: &mut PgConnection,
    (name, table): (&str, &Relation),
    spool: &Path,
    output: &mut Output,
) -> Result<()> {
    let file = tokio::fs::File::open(spool).await.map_err(Error::io("reading", spool))?;
    let mut lines = BufReader::new(file).lines();
    let sql = format!(
        "SELECT x.k, x.key, x.row, x.nulls
         FROM (SELECT {} AS k, {} AS key, row_to_json(whole_row.*)::text AS row, {} AS nulls
               FROM ONLY {name} AS whole_row) AS x
         WHERE x.k = ANY($1)",
        key_sql(table),
        key_json_sql(table),
        json_nulls_sql(table)
    );
    loop {
        let mut wanted: HashMap<String, Spooled> = HashMap::new();
        while wanted.len() < CHUNK
            && let Some(line) = lines.next_line().await.map_err(Error::io("reading", spool))?
        {
            let spooled = Spooled::read(&line);
            let (key, spooled) =
                spooled.ok_or_else(|| Error::Order { what: format!("a key of {name} was cut short on its way") })?;
            wanted.entry(key.to_owned()).or_insert(spooled).times += 1;
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> = wanted.keys().cloned().collect();
        let doing = || Error::query(format!("reading the rows of {name} that were written late"));
        let mut found = sqlx::query_as::<_, (String, String, String, String)>(AssertSqlSafe(sql.clone()))
            .bind(keys)
            .fetch(&mut *session);
        while let Some((hash, key, row, nulls)) = found.try_next().await.map_err(doing())? {
            let Some(Spooled { updated, times, hash, before }) = wanted.remove(&hash) else { continue };
            let change = if updated { "updated" } else { "inserted" };
            let times = if times > 1 { format!(",\"times\":{times}") } else { String::new() };
            let before = if updated { format!(",\"before\":\"{before}\"") } else { String::new() };
            // A line break in JSON is white space: within a text it is written as \n.
            let row = row.replace(['\n', '\r'], " ");
            let key = if key.is_empty() { key } else { format!(",\"key\":{key}") };
            let nulls = if nulls == "[]" { String::new() } else { format!(",\"jsonNull\":{nulls}") };
            let line =
                format!("{{\"change\":\"{change}\"{times}{key}{before},\"rowHash\":\"{hash}\"{nulls},\"row\":{row}}}");
            output.line(line.as_bytes())?;
        }
    }
}

/// Which columns hold JSON's own null, which in a row's JSON looks like SQL's; a JSON array's text.
fn json_nulls_sql(table: &Relation) -> String {
    let named = json_columns(table)
        .map(|column| format!("CASE WHEN {}::text = 'null' THEN {} END", quote_ident(column), quote_literal(column)));
    let named: Vec<_> = named.collect();
    format!("array_to_json(array_remove(ARRAY[{}]::text[], NULL))::text", named.join(", "))
}
