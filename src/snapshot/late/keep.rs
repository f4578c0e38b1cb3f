//! Writes a baseline: one read point, one file a table, `baseline.json` last.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use tracing::info;

use super::{BASELINE, Baseline, KeptTable, lines_sql};
use crate::snapshot::{
    erase,
    error::{Error, Result},
    hex,
    manifest::{hash_file, write_once},
    schema::{Relation, Schema},
    sha256_hex,
};

/// Writes every table's keys and hashes, as the session's transaction sees them. Gives the SHA-256 of `baseline.json`.
pub async fn keep(
    session: &mut PgConnection,
    directory: &Path,
    schema: &Schema,
    mut baseline: Baseline,
) -> Result<(Baseline, String)> {
    DirBuilder::new().recursive(true).mode(0o770).create(directory).map_err(Error::io("making", directory))?;
    for (number, (name, table)) in schema.tables().enumerate() {
        let file = format!("baseline-{:04}.rows", number + 1);
        let kept = table_rows(session, directory, file, (name, table)).await?;
        info!(table = name, rows = kept.rows, "keys and hashes kept");
        baseline.tables.insert(name.to_owned(), kept);
    }
    let mut bytes = serde_json::to_vec_pretty(&baseline).map_err(|error| Error::Order { what: error.to_string() })?;
    bytes.push(b'\n');
    write_once(directory, BASELINE, &bytes)?;
    let Some(found) = read(directory)? else {
        return Err(Error::Damaged { directory: directory.to_owned(), what: format!("{BASELINE} is not there") });
    };
    verify(directory, &found.0)?;
    Ok(found)
}

async fn table_rows(
    session: &mut PgConnection,
    directory: &Path,
    file: String,
    (name, table): (&str, &Relation),
) -> Result<KeptTable> {
    let path = directory.join(&file);
    let _ = fs::remove_file(&path);
    let failed = || Error::io("writing", &path);
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o660).open(&path).map_err(failed())?;
    let mut writer = BufWriter::with_capacity(256 * 1024, opened);
    let doing = || Error::query(format!("reading keys and hashes of {name}"));
    let sql = lines_sql(name, table);
    let (mut hash, mut bytes, mut rows) = (Sha256::new(), 0u64, 0i64);
    {
        let mut lines = session.copy_out_raw(&sql).await.map_err(doing())?;
        while let Some(piece) = lines.try_next().await.map_err(doing())? {
            hash.update(&piece);
            bytes += piece.len() as u64;
            rows += i64::try_from(piece.iter().filter(|byte| **byte == b'\n').count()).unwrap_or_default();
            writer.write_all(&piece).map_err(failed())?;
        }
    }
    let written = writer.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all());
    written.map_err(failed())?;
    let columns = table.columns.keys().cloned().collect();
    Ok(KeptTable { file, rows, bytes, sha256: hex(&hash.finalize()), key: table.primary_key.clone(), columns })
}

/// Reads `baseline.json` and its hash; `None` when there is none.
pub fn read(directory: &Path) -> Result<Option<(Baseline, String)>> {
    let path = directory.join(BASELINE);
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io("reading", &path))?,
    };
    let damaged = |what: String| Error::Damaged { directory: directory.to_owned(), what };
    let baseline: Baseline = serde_json::from_slice(&bytes).map_err(|error| damaged(format!("{BASELINE}: {error}")))?;
    if baseline.v != 1 {
        return Err(damaged(format!("{BASELINE} has version {}, this operator reads 1", baseline.v)));
    }
    Ok(Some((baseline, sha256_hex(bytes))))
}

/// Reads every file back. Where they were erased the error says so.
pub fn verify(directory: &Path, baseline: &Baseline) -> Result<()> {
    erase::refuse(directory)?;
    for kept in baseline.tables.values() {
        let path = directory.join(&kept.file);
        let found = hash_file(&path).map_err(Error::io("reading back", &path))?;
        if (found.bytes, found.sha256.as_str()) != (kept.bytes, kept.sha256.as_str()) {
            let what = format!("{} has {} bytes or another hash, written were {}", kept.file, found.bytes, kept.bytes);
            return Err(Error::Damaged { directory: directory.to_owned(), what });
        }
    }
    Ok(())
}
