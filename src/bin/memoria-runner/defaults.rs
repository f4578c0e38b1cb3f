//! `defaults`: the settings that an image comes with, from its own `config.example.yaml`. Its text goes into the answer,
//! packed, and nowhere else: never into the log.

use std::{fs::File, io::Read as _, path::Path};

use memoria_runner::{
    order::{Category, DefaultsFacts, Facts, MAX_REPORT_BYTES, Report, RunnerOrder},
    pack::pack,
};

use crate::report::{failed, ok};

/// Where the file is looked for when the order names no path; relative ones from the working directory.
const PLACES: [&str; 3] = ["config.example.yaml", "/app/config.example.yaml", "/opt/memoria/config.example.yaml"];
/// More than this is no file of settings.
const MAX_BYTES: u64 = 256 * 1024;
/// What the rest of the answer takes, at most.
const REST_BYTES: usize = 768;

pub fn run(order: &RunnerOrder) -> Report {
    let named = order.baseline_path.as_deref();
    let found = match named {
        Some(path) => Some(path).filter(|path| Path::new(path).is_file()),
        None => PLACES.into_iter().find(|path| Path::new(path).is_file()),
    };
    let Some(path) = found else {
        let places = named.map_or_else(|| PLACES.join(", "), str::to_owned);
        let message = format!("the image has no {places}; set config.baselinePath to its file of default settings");
        return failed("NoDefaults", Category::Environment, message);
    };
    let text = match read(Path::new(path)) {
        Ok(text) => text,
        Err(why) => return failed("DefaultsUnreadable", Category::Environment, format!("{path} of the image {why}")),
    };
    let packed = pack(&text);
    let room = MAX_REPORT_BYTES - REST_BYTES;
    if packed.len() > room {
        let message = format!(
            "{path} of the image has {} bytes, {} when packed, and an answer has room for {room}: it cannot be merged; \
             set config.baselinePath to a shorter file of default settings, or take config out of the release",
            text.len(),
            packed.len()
        );
        return failed("DefaultsTooLarge", Category::Environment, message);
    }
    let mut report = ok(format!("{path} has {} bytes", text.len()));
    report.facts = Some(Facts::Defaults(DefaultsFacts { path: path.to_owned(), packed }));
    report
}

fn read(path: &Path) -> Result<String, String> {
    let unread = |error: std::io::Error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    File::open(path).map_err(unread)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unread)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("has more than {MAX_BYTES} bytes: it is no file of settings"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}
