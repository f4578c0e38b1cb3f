//! Whether this process and the API server agree on the time: limits and leases rest on it.

use http::Request;
use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use kube::Client;

use super::{failed, passed};
use crate::{
    api::release::{CheckResult, Verdict},
    cluster::{client::bounded, error::ClusterError},
};

const NAME: &str = "clock";
/// From here on it is worth a note.
const NOTED: SignedDuration = SignedDuration::from_secs(5);
/// From here on limits and times in the journal mislead.
const REFUSED: SignedDuration = SignedDuration::from_secs(30);

pub(super) async fn of(client: &Client) -> Result<CheckResult, ClusterError> {
    let request = Request::get("/version").body(Vec::new());
    let request = request.map_err(|error| ClusterError::local("ask", "the API server's time", &error))?;
    let before = Timestamp::now();
    let answer = bounded("ask", "the API server's time", client.send(request.map(kube::client::Body::from))).await?;
    let after = Timestamp::now();
    let said = answer.headers().get("date").and_then(|date| date.to_str().ok());
    Ok(judge(before, after, said))
}

fn judge(before: Timestamp, after: Timestamp, said: Option<&str>) -> CheckResult {
    let parsed = said.and_then(|said| rfc2822::DateTimeParser::new().parse_timestamp(said).ok());
    let Some(server) = parsed else {
        let message = "the API server sends no Date header, so its clock could not be compared";
        return CheckResult { name: NAME.to_owned(), result: Verdict::Passed, message: message.to_owned() };
    };
    // The header counts whole seconds, and was written at some moment between the two.
    let early = before.duration_since(server) - SignedDuration::from_secs(1);
    let late = server.duration_since(after);
    let skew = early.max(late).max(SignedDuration::ZERO);
    let message = |advice: &str| {
        let (seconds, way) = (skew.as_secs(), if early > late { "ahead of" } else { "behind" });
        format!("the operator's clock is at least {seconds} s {way} the API server's{advice}")
    };
    if skew > REFUSED {
        failed(NAME, message("; synchronise the nodes' clocks (NTP), then ask again"))
    } else if skew > NOTED {
        passed(NAME, message(": times in journal and limits are off by as much; synchronise the nodes' clocks (NTP)"))
    } else {
        passed(NAME, "the operator's clock agrees with the API server's".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::judge;
    use crate::api::release::Verdict;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_clock_that_is_off_is_noted_and_then_refused() {
        let said = Some("Sun, 22 Nov 2026 01:00:00 GMT");
        for (now, result, part) in [
            ("2026-11-22T01:00:00.9Z", Verdict::Passed, "agrees"),
            ("2026-11-22T01:00:05Z", Verdict::Passed, "agrees"),
            ("2026-11-22T01:00:08Z", Verdict::Passed, "at least 7 s ahead of"),
            ("2026-11-22T00:59:50Z", Verdict::Passed, "at least 10 s behind"),
            ("2026-11-22T00:59:00Z", Verdict::Failed, "at least 60 s behind"),
            ("2026-11-22T01:10:00Z", Verdict::Failed, "NTP"),
        ] {
            let check = judge(at(now), at(now), said);
            assert_eq!(check.result, result, "{now}: {}", check.message);
            assert!(check.message.contains(part), "{now}: {}", check.message);
        }
        assert!(judge(at("2026-11-22T01:00:00Z"), at("2026-11-22T01:00:00Z"), None).message.contains("Date"));
    }

    #[test]
    fn a_slow_answer_is_no_skew() {
        let check =
            judge(at("2026-11-22T00:59:56Z"), at("2026-11-22T01:00:04Z"), Some("Sun, 22 Nov 2026 01:00:00 GMT"));
        assert!(check.message.contains("agrees"), "{}", check.message);
    }
}
