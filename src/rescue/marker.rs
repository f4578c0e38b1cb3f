//! Looks for the attempt's markers in the database, where its URL is at hand. Only reads.

use std::{fmt, str::FromStr};

use super::state::RescueState;
use crate::{
    api::upgrade::Engine,
    job::protocol::{DATABASE_URL_ENV, JobOrder, ORDER_ENV, RestoreOrder},
    snapshot::{
        identity, markers,
        markers::Marker,
        session::{application_name, open},
        sqlite::{self, url::SqliteUrl},
        url::DatabaseUrl,
    },
};

/// What the markers say.
#[derive(Debug)]
pub enum Looked {
    /// The attempt's own, oldest first, in words.
    Markers(Vec<String>),
    /// Why it could not look.
    Not(String),
}

impl fmt::Display for Looked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Markers(markers) if markers.is_empty() => f.write_str("none of this attempt"),
            Self::Markers(markers) => f.write_str(&markers.join(", ")),
            Self::Not(why) => {
                write!(
                    f,
                    "not looked at ({why}). The script's restore Job looks itself, and restores nothing twice. "
                )?;
                f.write_str("By hand: SELECT * FROM memoria_operator.attempt_step, of an SQLite file the neighbour ")?;
                f.write_str("*.memoria-operator.json")
            }
        }
    }
}

/// Looks in the database of `url`, which must be the one that the snapshot is of.
pub async fn look(state: &RescueState, url: Option<&str>) -> Looked {
    let Some(url) = url else { return Looked::Not(format!("{DATABASE_URL_ENV} is not set")) };
    let looked = match state.engine {
        Engine::Postgresql => postgresql(state, url).await,
        Engine::Sqlite => sqlite(state, url),
    };
    match looked {
        Ok(markers) => {
            let ours = |m: &&Marker| m.release_uid == state.release_uid && m.attempt == state.attempt;
            Looked::Markers(markers.iter().filter(ours).map(in_words).collect())
        }
        Err(why) => Looked::Not(why),
    }
}

fn in_words(marker: &Marker) -> String {
    let end = match (&marker.outcome, marker.finished) {
        (Some(outcome), true) => format!("ended: {outcome}"),
        (None, true) => "ended".to_owned(),
        (_, false) => "never finished".to_owned(),
    };
    format!("{} of {} {end}", marker.step, marker.started_at)
}

async fn postgresql(state: &RescueState, url: &str) -> Result<Vec<Marker>, String> {
    let expected =
        order(state).and_then(|order| order.database.identity).ok_or("the restore order names no database")?;
    let url = DatabaseUrl::from_str(url).map_err(|error| error.to_string())?;
    let read = async {
        let mut session = open(&url, &application_name(&state.attempt, "rescue")).await?;
        identity::prove(&expected, &identity::read(&mut session, &url).await?)?;
        markers::all(&mut session).await
    };
    read.await.map_err(|error: crate::snapshot::Error| url.redact(&error.to_string()))
}

fn sqlite(state: &RescueState, url: &str) -> Result<Vec<Marker>, String> {
    let directory = order(state).and_then(|order| order.database.working_directory);
    let parsed = SqliteUrl::parse(url).map_err(|error| error.to_string())?;
    let path = parsed.resolve(directory.as_deref()).map_err(|error| error.to_string())?;
    if !path.exists() {
        return Err(format!("there is no {}: mount the claim of the data as the Server does", path.display()));
    }
    sqlite::markers::Markers::read(&path).map(|markers| markers.all()).map_err(|error| error.to_string())
}

/// The order of the pinned restore Job.
pub fn order(state: &RescueState) -> Option<RestoreOrder> {
    let containers = state.restore.pointer("/spec/template/spec/containers")?.as_array()?;
    let mut entries = containers.iter().flat_map(|container| container["env"].as_array().into_iter().flatten());
    let text = entries.find(|entry| entry["name"] == ORDER_ENV)?["value"].as_str()?;
    match serde_json::from_str(text).ok()? {
        JobOrder::Restore(order) => Some(order),
        _ => None,
    }
}
