//! What every Job finds around it: order, input, the database's URL, and where things are mounted.

use std::{
    env,
    path::{Component, Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use sqlx::PgConnection;
use tracing::warn;

use super::protocol::{
    DATABASE_URL_ENV, DatabaseTask, INPUT_ENV, JobInput, JobOrder, JobReport, ORDER_ENV, SCRATCH_MOUNT, SHARED_MOUNT,
    STORAGE_MOUNT,
};
use crate::{
    api::upgrade::{Category, Engine},
    snapshot::{
        Error, Result,
        archive::{Archive, Part},
        identity,
        session::{application_name, open},
        sqlite::url::{SqliteUrl, SqliteUrlError},
        url::{DatabaseUrl, UrlError},
    },
};

/// Where things are mounted. Each place can be moved by a variable `MEMORIA_OPERATOR_PLACE_…`, which only tests do.
#[derive(Clone, Debug)]
pub struct Places {
    pub storage: PathBuf,
    pub shared: PathBuf,
    pub scratch: PathBuf,
    pub termination_log: PathBuf,
}

impl Places {
    pub fn from_environment() -> Self {
        let place = |name: &str, default: &str| {
            env::var_os(format!("MEMORIA_OPERATOR_PLACE_{name}")).map_or_else(|| default.into(), PathBuf::from)
        };
        Self {
            storage: place("STORAGE", STORAGE_MOUNT),
            shared: place("SHARED", SHARED_MOUNT),
            scratch: place("SCRATCH", SCRATCH_MOUNT),
            termination_log: place("TERMINATION_LOG", "/dev/termination-log"),
        }
    }
}

pub struct Context {
    pub places: Places,
    pub input: JobInput,
    /// Where what is made below the storage's mount stays.
    pub archive: Archive,
    url: Result<DatabaseUrl, UrlError>,
    /// Where the URL's scheme is SQLite's.
    sqlite: Option<Result<SqliteUrl, SqliteUrlError>>,
}

impl Context {
    /// With its order.
    pub fn from_environment(places: Places) -> Result<(Self, JobOrder)> {
        let (order, input) = json(ORDER_ENV)
            .and_then(|order| Ok((order, if_there(INPUT_ENV)?)))
            .map_err(|what| Error::Order { what })?;
        let url = env::var(DATABASE_URL_ENV).unwrap_or_default();
        let archive = Archive::from_environment(&places.storage)?;
        Ok((Self { input, archive, ..Self::of(places, &url) }, order))
    }

    /// Another database, for what is done on a copy: no order and no input.
    pub fn of(places: Places, url: &str) -> Self {
        let sqlite = SqliteUrl::is_meant(url).then(|| SqliteUrl::parse(url));
        let archive = Archive::none(&places.storage);
        Self { places, input: JobInput::default(), archive, url: DatabaseUrl::from_str(url), sqlite }
    }

    /// The same with this input.
    pub fn with_input(&self, input: JobInput) -> Self {
        let Self { places, archive, url, sqlite, .. } = self;
        Self { places: places.clone(), input, archive: archive.clone(), url: url.clone(), sqlite: sqlite.clone() }
    }

    /// Whose steps these are: the URL's scheme decides.
    pub fn engine(&self) -> Engine {
        if self.sqlite.is_some() { Engine::Sqlite } else { Engine::Postgresql }
    }

    pub fn sqlite_url(&self) -> Result<&SqliteUrl> {
        match &self.sqlite {
            Some(Ok(url)) => Ok(url),
            Some(Err(error)) => Err(Error::SqliteUrl(error.clone())),
            None => Err(Error::Order { what: "the database URL is no SQLite URL".to_owned() }),
        }
    }

    pub fn url(&self) -> Result<&DatabaseUrl> {
        self.url.as_ref().map_err(|error| Error::Url(error.clone()))
    }

    /// A session of this task on the database that it names; any other database is an error.
    pub async fn session(&self, task: &DatabaseTask, step: &str) -> Result<PgConnection> {
        let url = self.url()?;
        let mut session = open(url, &application_name(&task.attempt, step)).await?;
        if let Some(expected) = &task.identity {
            identity::prove(expected, &identity::read(&mut session, url).await?)?;
        }
        Ok(session)
    }

    /// The same, trying again for `patience` while the database cannot be reached.
    pub async fn patient_session(&self, task: &DatabaseTask, step: &str, patience: Duration) -> Result<PgConnection> {
        let started = Instant::now();
        loop {
            match self.session(task, step).await {
                Err(error) if error.category() == Category::Transient && started.elapsed() < patience => {
                    warn!(%error, "trying again");
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
                other => return other,
            }
        }
    }

    /// A directory below the storage's mount; one that leads out of it is refused.
    pub fn below_storage(&self, directory: &str) -> Result<PathBuf> {
        let relative = Path::new(directory);
        let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
        if directory.is_empty() || !inside {
            return Err(Error::Order { what: format!("{directory:?} is no directory below the storage") });
        }
        Ok(self.places.storage.join(relative))
    }

    /// Brings what is kept of a directory elsewhere.
    pub async fn bring(&self, directory: &str, part: Part) -> Result<()> {
        self.with_archive(directory, move |archive, directory| archive.bring(directory, part).map(drop)).await
    }

    /// Keeps a directory where it stays, if that is elsewhere.
    pub async fn keep(&self, directory: &str) -> Result<()> {
        self.with_archive(directory, Archive::keep).await
    }

    /// On a thread that may wait.
    async fn with_archive(
        &self,
        directory: &str,
        work: impl FnOnce(&Archive, &str) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        self.below_storage(directory)?;
        let (archive, directory) = (self.archive.clone(), directory.to_owned());
        let path = self.places.storage.join(&directory);
        let done = tokio::task::spawn_blocking(move || work(&archive, &directory)).await;
        done.map_err(|error| Error::io("keeping", path)(error.into()))?
    }

    /// The report without any form of the password, in the parts that hold free text.
    pub fn redact(&self, mut report: JobReport) -> JobReport {
        if let Ok(url) = &self.url {
            super::report::texts(&mut report).into_iter().for_each(|text| *text = url.redact(text));
        }
        report
    }
}

fn json<T: serde::de::DeserializeOwned>(name: &str) -> Result<T, String> {
    let text = env::var(name).map_err(|error| format!("{name}: {error}"))?;
    serde_json::from_str(&text).map_err(|error| format!("{name}: {error}"))
}

fn if_there<T: serde::de::DeserializeOwned + Default>(name: &str) -> Result<T, String> {
    if env::var_os(name).is_some() { json(name) } else { Ok(T::default()) }
}
