//! Exports a database: one read point, the rows streamed by COPY and written as JSON, every digest proved by the server.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{Connection, PgConnection};
use tokio::sync::{mpsc, watch};
use tracing::info;

use super::{
    ENGINE, coverage,
    encode::Encoder,
    official,
    rows::{WAITING, send_rows},
    value::Field,
};
use crate::snapshot::{
    Error, Result,
    digest::{self, DataDigest, RowSums, TableDigest},
    dump, identity,
    manifest::StoredFile,
    portable::{
        MAIN, OTHERS, Options, Planned, Progress, divide,
        file::FileWriter,
        form::{Frame, RowFrame},
        manifest::{self, KIND, Manifest, Proof, Table},
        metadata, prepare,
    },
    quote_literal,
    schema::{self, Relation, Schema},
    session::{self, execute},
    sqlite::blocking,
    store::{Place, ToPlace},
    url::DatabaseUrl,
};

/// What is exported, and how.
pub struct Request<'a> {
    pub url: &'a DatabaseUrl,
    /// `application_name` of our sessions.
    pub application: &'a str,
    /// Made where it is missing; it must be empty.
    pub directory: &'a dyn ToPlace,
    pub options: Options,
    /// The read point: a snapshot that another transaction exported and still holds. Without it one is taken.
    pub snapshot: Option<&'a str>,
    pub digests: Digests,
    pub progress: Progress,
}

/// Which digests those of the rows, as they are written, must equal.
#[derive(Clone, Debug)]
pub enum Digests {
    /// The server's, computed beside the export.
    Compute,
    /// The server's, which somebody else has computed at the same snapshot, or is about to.
    Known(watch::Receiver<Option<DataDigest>>),
    /// None.
    Unproved,
}

impl Digests {
    pub fn of(proof: Proof) -> Self {
        match proof {
            Proof::Server => Self::Compute,
            Proof::Rows => Self::Unproved,
        }
    }

    fn proof(&self) -> Proof {
        match self {
            Self::Compute | Self::Known(_) => Proof::Server,
            Self::Unproved => Proof::Rows,
        }
    }
}

/// The read point and what is known of it.
struct Point {
    snapshot: String,
    schema: Schema,
    read_at: jiff::Timestamp,
}

/// Exports every table, column and sequence, and gives the manifest, which is written last.
pub async fn export(request: &Request<'_>) -> Result<Manifest> {
    let place = request.directory.to_place();
    let (busy, mut idle) = mpsc::channel(1);
    let exported = export_to(request, &place, busy).await;
    // A file that was given up is let go of before anybody hears why.
    let _: Option<()> = idle.recv().await;
    exported
}

/// Whoever writes a file holds `busy`.
async fn export_to(request: &Request<'_>, place: &Place, busy: mpsc::Sender<()>) -> Result<Manifest> {
    let started_at = jiff::Timestamp::now();
    on(place, Place::try_writing).await?;
    let mut session = session::open(request.url, request.application).await?;
    let mut second = session::open(request.url, request.application).await?;
    let point = begin(&mut session, request.snapshot).await?;
    join(&mut second, &point.snapshot).await?;
    let unsupported = coverage::unsupported(&mut session, &point.schema).await?;
    if !unsupported.is_empty() {
        return Err(Error::Uncovered { what: dump::first(&unsupported) });
    }
    let official = |name: &str| point.schema.relations.get(name).and_then(official);
    let mut planned = divide(request.options.form, point.schema.tables().map(|(name, _)| name), official);
    for table in planned.iter_mut().flatten() {
        table.rows = count(&mut session, &table.table).await?;
    }
    let options = request.options.clone();
    on(place, move |place| prepare(place, &options)).await?;
    let [main, others] = &planned;
    info!(tables = main.len() + others.len(), snapshot = point.snapshot, "the read point is taken; rows are written");

    let target = Target { place, busy };
    let first = write(request, &target, &point, &mut session, (MAIN, main));
    // The second session writes the smaller file, then may have the server compute every digest beside the first.
    let rest = async {
        let written = write(request, &target, &point, &mut second, (OTHERS, others)).await?;
        Ok((written, digests(request, &point, &mut second).await?))
    };
    let ((main_file, mut tables), ((others_file, more), digests)) = tokio::try_join!(first, rest)?;
    tables.extend(more);
    for (name, digest) in &digests {
        if tables.get(name).is_none_or(|table| table.content != *digest) {
            let what = format!("the rows of {name} as they were written are not those that the server has");
            return Err(Error::Order { what });
        }
    }
    let sequences = digest::sequences(&mut session, &point.schema).await?;
    let identity = identity::read(&mut session, request.url).await?;
    let (server_version,) = sqlx::query_as("SELECT current_setting('server_version')")
        .fetch_one(&mut session)
        .await
        .map_err(Error::query("reading the server's version"))?;
    let written = coverage::Written {
        columns: tables
            .keys()
            .filter_map(|name| Some((name.as_str(), columns(point.schema.relations.get(name)?))))
            .collect(),
        sequences: sequences.keys().map(String::as_str).collect(),
    };
    covered(request, &point.schema, &written).await?;

    let fingerprint = point.schema.fingerprint();
    let options = request.options.clone();
    let schema_file = on(place, move |place| manifest::write_schema(place, &point.schema, &options)).await?;
    let files = [(request.options.name(MAIN), main_file), (request.options.name(OTHERS), others_file)];
    let mut manifest = Manifest {
        v: 1,
        kind: KIND.to_owned(),
        engine: ENGINE.to_owned(),
        form: request.options.form,
        compression: request.options.compression,
        encryption: request.options.recipients.described(),
        proof: request.digests.proof(),
        operator_version: env!("CARGO_PKG_VERSION").to_owned(),
        server_version,
        tool_versions: [("zstd".to_owned(), zstd::zstd_safe::version_string().to_owned())].into(),
        identity: Some(identity),
        session_settings: dump::settings(),
        started_at,
        read_at: point.read_at,
        read_point: format!("snapshot {}", point.snapshot),
        finished_at: jiff::Timestamp::now(),
        schema_fingerprint: fingerprint.clone(),
        tables,
        sequences,
        data_digest: String::new(),
        files: files.into_iter().chain([schema_file]).collect(),
    };
    manifest.data_digest = manifest.data().total(&fingerprint);
    let manifest = on(place, move |place| manifest::write(place, &manifest).map(|()| manifest)).await?;
    let _ = tokio::join!(session.close(), second.close());
    Ok(manifest)
}

/// Works on the place where a thread may wait.
async fn on<T: Send + 'static>(place: &Place, work: impl FnOnce(&Place) -> Result<T> + Send + 'static) -> Result<T> {
    let place = place.clone();
    blocking(move || work(&place)).await
}

/// The server's digest of each table, where the export is to be proved by them.
async fn digests(
    request: &Request<'_>,
    point: &Point,
    session: &mut PgConnection,
) -> Result<BTreeMap<String, TableDigest>> {
    match &request.digests {
        Digests::Unproved => Ok(BTreeMap::new()),
        Digests::Compute => {
            let mut digests = BTreeMap::new();
            for (name, relation) in point.schema.tables() {
                digests.insert(name.to_owned(), digest::table(session, name, relation).await?);
            }
            Ok(digests)
        }
        Digests::Known(known) => {
            let gone = || Error::Order { what: "whoever computes the server's digests gave none".to_owned() };
            let mut known = known.clone();
            let data = known.wait_for(Option::is_some).await.map_err(|_| gone())?;
            Ok(data.as_ref().ok_or_else(gone)?.tables.clone())
        }
    }
}

fn columns(relation: &Relation) -> BTreeSet<&str> {
    relation.columns.keys().map(String::as_str).collect()
}

/// Opens the transaction that all is read in.
async fn begin(session: &mut PgConnection, snapshot: Option<&str>) -> Result<Point> {
    match snapshot {
        Some(snapshot) => join(session, snapshot).await?,
        None => execute(session, "beginning the read", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?,
    }
    let schema = schema::read(session).await?;
    let read_at = jiff::Timestamp::now();
    let snapshot = match snapshot {
        Some(snapshot) => snapshot.to_owned(),
        None => dump::export(session).await?,
    };
    Ok(Point { snapshot, schema, read_at })
}

/// Opens a transaction that sees what the exported snapshot shows.
async fn join(session: &mut PgConnection, snapshot: &str) -> Result<()> {
    let sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        quote_literal(snapshot)
    );
    execute(session, "reading at the exported snapshot", sql).await
}

async fn count(session: &mut PgConnection, table: &str) -> Result<i64> {
    let sql = format!("SELECT count(*) FROM ONLY {table}");
    let (rows,) = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .fetch_one(session)
        .await
        .map_err(Error::query(format!("counting the rows of {table}")))?;
    Ok(rows)
}

type Written = (StoredFile, BTreeMap<String, Table>);

/// Where the files go.
struct Target<'a> {
    place: &'a Place,
    busy: mpsc::Sender<()>,
}

/// Writes one file.
async fn write(
    request: &Request<'_>,
    target: &Target<'_>,
    point: &Point,
    session: &mut PgConnection,
    (begin, planned): (&'static str, &[Planned]),
) -> Result<Written> {
    let (name, options, busy) = (request.options.name(begin), request.options.clone(), target.busy.clone());
    let file = on(target.place, move |place| FileWriter::create(place, &options.name(begin), &options, busy)).await?;
    let written = write_tables(request, point, session, &file, planned).await;
    let (stored, digests) = blocking(move || file.end(written)).await?;
    let content = |planned: &Planned, content| Table { file: name.clone(), name: planned.name.clone(), content };
    let tables = planned.iter().zip(digests).map(|(planned, sums)| (planned.table.clone(), content(planned, sums)));
    Ok((stored, tables.collect()))
}

async fn write_tables(
    request: &Request<'_>,
    point: &Point,
    session: &mut PgConnection,
    file: &FileWriter,
    planned: &[Planned],
) -> Result<Vec<TableDigest>> {
    let metadata = metadata(ENGINE, request.options.form, point.read_at, planned);
    let mut frame = Frame::new(request.options.form, &metadata);
    let mut digests = Vec::new();
    file.write(frame.head());
    for table in planned {
        let gone = || Error::Order { what: format!("table {} is planned but not in the schema", table.table) };
        let relation = point.schema.relations.get(&table.table).ok_or_else(gone)?;
        file.write(frame.begin(&table.name));
        let sums = write_rows(request, session, file, (table, relation)).await?;
        if sums.rows() != table.rows {
            let what = format!("{} rows of {} were read, {} were counted before", sums.rows(), table.table, table.rows);
            return Err(Error::Order { what });
        }
        file.write(frame.end(table.rows).to_vec());
        digests.push(sums.finish());
    }
    file.write(frame.tail());
    Ok(digests)
}

async fn write_rows(
    request: &Request<'_>,
    session: &mut PgConnection,
    file: &FileWriter,
    (planned, relation): (&Planned, &Relation),
) -> Result<RowSums> {
    let encoder = Encoder {
        table: planned.table.clone(),
        fields: Field::all(relation),
        frame: RowFrame::new(request.options.form, &planned.name, relation.columns.keys()),
        expected: planned.rows,
        progress: request.progress.clone(),
    };
    let (sender, receiver) = mpsc::channel(WAITING);
    let pieces = file.pieces();
    let encoding = tokio::task::spawn_blocking(move || encoder.run(receiver, &pieces));
    let sent = send_rows(session, &planned.table, relation, sender).await;
    let encoded = encoding.await.map_err(|error| Error::Order { what: format!("a thread ended early: {error}") })?;
    sent?;
    encoded
}

/// Looks at the database as it is now: what came to be since the plan was made is not in the export.
async fn covered(request: &Request<'_>, planned: &Schema, written: &coverage::Written<'_>) -> Result<()> {
    let mut session = session::open(request.url, request.application).await?;
    let live = schema::read(&mut session).await?;
    let _ = session.close().await;
    let gaps = coverage::gaps(&live, written);
    if !gaps.is_empty() {
        return Err(Error::Uncovered { what: dump::first(&gaps) });
    }
    let differences = dump::structure(planned, &live);
    if differences.is_empty() { Ok(()) } else { Err(Error::SchemaMoved { differences }) }
}
