//! Exports a file beside the Server that may be using it: one read transaction, nothing written into it.

use std::{collections::BTreeMap, path::Path};

use rusqlite::Connection;
use tracing::info;

use super::{
    ENGINE, official,
    rows::{row_hash, visit_table},
    value::Field,
};
use crate::snapshot::{
    Error, Result,
    digest::{RowSums, TableDigest},
    manifest::StoredFile,
    portable::{
        MAIN, OTHERS, Options, Planned, Progress, divide,
        file::FileWriter,
        form::{Frame, RowFrame},
        manifest::{self, KIND, Manifest, Proof, Table},
        metadata, prepare,
    },
    quote_ident,
    sqlite::{digest, library, open_beside, open_copy, schema},
    store::{Place, ToPlace},
};

/// Rows go to the file in pieces of about this size.
const PIECE: usize = 64 * 1024;

/// What is exported, and how.
pub struct Request<'a> {
    pub database: &'a Path,
    /// The file is a copy that nobody else has open, on a volume that may know no locks.
    pub copy: bool,
    /// Made where it is missing; it must be empty.
    pub directory: &'a dyn ToPlace,
    pub options: Options,
    pub progress: Progress,
}

/// Exports every table and column, and how far AUTOINCREMENT keys are. Gives the manifest, which is written last.
pub fn export(request: &Request<'_>) -> Result<Manifest> {
    let started_at = jiff::Timestamp::now();
    let (path, place) = (request.database, request.directory.to_place());
    place.try_writing()?;
    if !path.try_exists().map_err(Error::io("looking for", path))? {
        return Err(Error::FileMissing { path: path.to_owned() });
    }
    let connection = open(request)?;
    connection.execute_batch("BEGIN").map_err(Error::sqlite("beginning to read", path))?;
    let schema = schema::read(&connection, path)?;
    let unknown = schema.not_understood();
    if !unknown.is_empty() {
        return Err(Error::Uncovered { what: format!("virtual tables {}", unknown.join(", ")) });
    }
    let read_at = jiff::Timestamp::now();
    let sequences = digest::sequences(&connection, path, &schema)?;
    let mut planned = divide(request.options.form, schema.tables.keys().map(String::as_str), official);
    for table in planned.iter_mut().flatten() {
        let sql = format!("SELECT count(*) FROM main.{} NOT INDEXED", quote_ident(&table.table));
        let counted = connection.query_row(&sql, [], |row| row.get(0));
        table.rows = counted.map_err(Error::sqlite(format!("counting the rows of {} in", table.table), path))?;
    }
    prepare(&place, &request.options)?;
    let [main, others] = &planned;
    info!(tables = main.len() + others.len(), "the read point is taken; rows are written");

    let export = Exporting { request, place: &place, connection: &connection, schema: &schema, read_at };
    let (main_file, mut tables) = export.write(MAIN, main)?;
    let (others_file, more) = export.write(OTHERS, others)?;
    tables.extend(more);
    covered(request, &schema, &tables)?;
    let schema_file = manifest::write_schema(&place, &schema, &request.options)?;
    let files = [(request.options.name(MAIN), main_file), (request.options.name(OTHERS), others_file)];
    let fingerprint = schema.fingerprint();
    let mut manifest = Manifest {
        v: 1,
        kind: KIND.to_owned(),
        engine: ENGINE.to_owned(),
        proof: Proof::Rows,
        form: request.options.form,
        compression: request.options.compression,
        encryption: request.options.recipients.described(),
        operator_version: env!("CARGO_PKG_VERSION").to_owned(),
        server_version: library(),
        tool_versions: [("zstd".to_owned(), zstd::zstd_safe::version_string().to_owned())].into(),
        identity: None,
        session_settings: BTreeMap::new(),
        started_at,
        read_at,
        read_point: "one read transaction".to_owned(),
        finished_at: jiff::Timestamp::now(),
        schema_fingerprint: fingerprint.clone(),
        tables,
        sequences,
        data_digest: String::new(),
        files: files.into_iter().chain([schema_file]).collect(),
    };
    manifest.data_digest = manifest.data().total(&fingerprint);
    manifest::write(&place, &manifest)?;
    Ok(manifest)
}

fn open(request: &Request<'_>) -> Result<Connection> {
    if request.copy { open_copy(request.database) } else { open_beside(request.database) }
}

struct Exporting<'a> {
    request: &'a Request<'a>,
    place: &'a Place,
    connection: &'a Connection,
    schema: &'a schema::Schema,
    read_at: jiff::Timestamp,
}

impl Exporting<'_> {
    fn write(&self, begin: &str, planned: &[Planned]) -> Result<(StoredFile, BTreeMap<String, Table>)> {
        let options = &self.request.options;
        let name = options.name(begin);
        let file = FileWriter::create(self.place, &name, options, ())?;
        let written = self.tables(&file, planned);
        let (stored, digests) = file.end(written)?;
        let content = |planned: &Planned, content| Table { file: name.clone(), name: planned.name.clone(), content };
        let tables = planned.iter().zip(digests).map(|(planned, sums)| (planned.table.clone(), content(planned, sums)));
        Ok((stored, tables.collect()))
    }

    fn tables(&self, file: &FileWriter, planned: &[Planned]) -> Result<Vec<TableDigest>> {
        let metadata = metadata(ENGINE, self.request.options.form, self.read_at, planned);
        let mut frame = Frame::new(self.request.options.form, &metadata);
        let mut digests = Vec::new();
        file.write(frame.head());
        for table in planned {
            file.write(frame.begin(&table.name));
            let sums = self.rows(file, table)?;
            file.write(frame.end(sums.rows()).to_vec());
            digests.push(sums.finish());
        }
        file.write(frame.tail());
        Ok(digests)
    }

    fn rows(&self, file: &FileWriter, planned: &Planned) -> Result<RowSums> {
        let gone = || Error::Order { what: format!("table {} is planned but not in the schema", planned.table) };
        let table = self.schema.tables.get(&planned.table).ok_or_else(gone)?;
        let fields = Field::all(table);
        let mut frame =
            RowFrame::new(self.request.options.form, &planned.name, digest::columns(table).map(|(name, _)| name));
        let (mut sums, mut piece) = (RowSums::default(), Vec::with_capacity(PIECE + PIECE / 4));
        visit_table(self.connection, self.request.database, &planned.table, table, |values| {
            sums.add(&row_hash(values.iter().copied()));
            frame.begin(&mut piece);
            for (at, (field, value)) in fields.iter().zip(values).enumerate() {
                frame.key(at, &mut piece);
                field.write(*value, &mut piece);
            }
            frame.end(&mut piece);
            if piece.len() >= PIECE {
                file.write(std::mem::replace(&mut piece, Vec::with_capacity(PIECE + PIECE / 4)));
                (self.request.progress)(&planned.table, sums.rows(), Some(planned.rows));
            }
            Ok(())
        })?;
        file.write(piece);
        (self.request.progress)(&planned.table, sums.rows(), Some(planned.rows));
        Ok(sums)
    }
}

/// Looks at the file as it is now: what came to be since the plan was made is not in the export.
fn covered(request: &Request<'_>, planned: &schema::Schema, written: &BTreeMap<String, Table>) -> Result<()> {
    let connection = open(request)?;
    let live = schema::read(&connection, request.database)?;
    let mut gaps = Vec::new();
    for (name, table) in &live.tables {
        match planned.tables.get(name).filter(|_| written.contains_key(name)) {
            None => gaps.push(format!("table {name}")),
            Some(known) => {
                let missing = table.columns.keys().filter(|column| !known.columns.contains_key(*column));
                gaps.extend(missing.map(|column| format!("column {column} of table {name}")));
            }
        }
    }
    if !gaps.is_empty() {
        return Err(Error::Uncovered { what: crate::snapshot::dump::first(&gaps) });
    }
    let changes = schema::changes(planned, &live);
    let differences = crate::snapshot::dump::first(&changes);
    if changes.is_empty() { Ok(()) } else { Err(Error::SchemaMoved { differences }) }
}
