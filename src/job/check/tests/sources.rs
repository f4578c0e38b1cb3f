//! Numbers and their age: what Prometheus' API and HTTP answers may look like, and what is made of each.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::IntoResponse,
    routing::get,
};
use serde_json::{Value, json};

use super::{ALONE, check, make, order};
use crate::{
    api::{GoDuration, release::Verdict},
    job::{
        check::{run_with, source::Around},
        protocol::{CheckSource, Facts, OrderedCheck},
    },
};

fn now() -> f64 {
    crate::job::check::request::now()
}

fn vector(series: &[(f64, &str)]) -> Value {
    let result: Vec<_> = series.iter().map(|(at, value)| json!({"metric": {}, "value": [at, value]})).collect();
    json!({"status": "success", "data": {"resultType": "vector", "result": result}})
}

/// Speaks the query API. The path says how the samples are; `depth` falls by 10 with each question.
async fn api(Path(kind): Path<String>, uri: Uri, State(depth): State<Arc<Mutex<f64>>>) -> impl IntoResponse {
    let time = uri.query().unwrap_or_default().starts_with("query=min%28timestamp%28memoria_queue_depth%29%29");
    let is = |kind_: &str| kind == kind_;
    let body = match time {
        _ if is("broken") => {
            let body = json!({"status": "error", "errorType": "unavailable", "error": "TSDB not ready"});
            return (StatusCode::SERVICE_UNAVAILABLE, body.to_string());
        }
        true if is("stale") => vector(&[(now(), &(now() - 400.0).to_string())]),
        true if is("before") => vector(&[(now(), &(now() - 30.0).to_string())]),
        true if is("ahead") => vector(&[(now(), &(now() + 60.0).to_string())]),
        true => vector(&[(now(), &now().to_string())]),
        false if is("empty") => vector(&[]),
        false if is("nan") => vector(&[(now(), "NaN")]),
        false if is("several") => vector(&[(now(), "1"), (now(), "2")]),
        false if is("rises") => {
            let mut depth = depth.lock().unwrap();
            *depth += 10.0;
            vector(&[(now(), &depth.to_string())])
        }
        false if is("falls") => {
            let mut depth = depth.lock().unwrap();
            *depth -= 10.0;
            vector(&[(now(), &depth.to_string())])
        }
        false => vector(&[(now(), "93")]),
    };
    (StatusCode::OK, body.to_string())
}

async fn prometheus() -> String {
    let router = Router::new().route("/{kind}/api/v1/query", get(api)).with_state(Arc::new(Mutex::new(100.0)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

fn query(url: &str, pass_when: &str, within: u64) -> OrderedCheck {
    OrderedCheck {
        source: CheckSource::Prometheus,
        query: "sum(memoria_queue_depth)".to_owned(),
        fresh_within: Some(GoDuration::from_secs(120)),
        since_start: true,
        ..check(url, pass_when, within, 0)
    }
}

#[tokio::test]
async fn a_fresh_single_series_is_judged_with_value_time_and_source() {
    let server = prometheus().await;
    let baseline = serde_json::Number::from_f64(90.0);
    let passing = OrderedCheck { baseline, ..query(&format!("{server}/good/"), "value <= baseline * 1.2", 2) };
    let (report, verdict, message) = make(passing).await;
    assert!(report.ok && verdict == Verdict::Passed, "{message}");
    assert!(message.starts_with("value 93, baseline 90; prometheus 127.0.0.1 at 20"), "{message}");
    let (_, verdict, message) = make(query(&format!("{server}/good"), "value <= 10", 1)).await;
    assert_eq!(verdict, Verdict::Failed, "{message}");
    assert!(message.contains("last: value 93; prometheus 127.0.0.1 at 20"), "{message}");
}

#[tokio::test]
async fn data_that_is_not_fresh_and_unique_is_inconclusive() {
    let server = prometheus().await;
    for (kind, expected) in [
        ("stale", "the data is stale: 400s old, and freshWithin is 2m"),
        ("before", "before the check began"),
        ("ahead", "ahead of the clock"),
        ("empty", "gives no series"),
        ("nan", "gives NaN, which is no number"),
        ("several", "gives 2 series"),
        ("broken", "the server answers 503: unavailable: TSDB not ready"),
    ] {
        let (report, verdict, message) = make(query(&format!("{server}/{kind}"), "value <= 100", 1)).await;
        assert_eq!((report.ok, verdict), (false, Verdict::Inconclusive), "{kind}: {message}");
        assert_eq!(report.reason, "CheckInconclusive");
        assert!(message.contains(expected), "{kind}: {message}");
    }
    let unproved = OrderedCheck { query: "rate(a[5m])".to_owned(), ..query(&server, "value <= 100", 1) };
    assert!(make(unproved).await.2.contains("prometheus.timeQuery"));
}

#[tokio::test]
async fn a_number_that_falls_fast_enough_gets_more_time_and_one_that_does_not_fails() {
    let server = prometheus().await;
    let more = Some(GoDuration::from_secs(30));
    let draining = OrderedCheck { draining: more, ..query(&format!("{server}/falls"), "value <= 20", 4) };
    let begun = std::time::Instant::now();
    let (report, _, message) = make(draining).await;
    assert!(report.ok && begun.elapsed() > Duration::from_secs(5), "{message}");
    let rising = OrderedCheck { draining: more, ..query(&format!("{server}/rises"), "value <= 20", 4) };
    let begun = std::time::Instant::now();
    let (_, verdict, message) = make(rising).await;
    assert_eq!(verdict, Verdict::Failed);
    assert!(begun.elapsed() < Duration::from_secs(25), "it waited although the number rises");
    assert!(message.contains("it does not fall fast enough"), "{message}");
}

/// `/<age in seconds>` tells a number and its time, `/words` something else.
async fn site() -> String {
    let aged = |Path(age): Path<String>| async move {
        let at = |seconds: i64| {
            let then = jiff::Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap();
            // As Python writes it: without an offset.
            then.strftime("%Y-%m-%dT%H:%M:%S").to_string()
        };
        match age.parse() {
            Ok(seconds) => json!({"depth": 7, "at": at(seconds)}).to_string(),
            Err(_) => json!({"depth": "seven", "at": "yesterday"}).to_string(),
        }
    };
    let router = Router::new().route("/{age}", get(aged));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

fn told(url: &str, pass_when: &str) -> OrderedCheck {
    OrderedCheck {
        value_of: Some("body.depth".to_owned()),
        time_of: Some("body.at".to_owned()),
        fresh_within: Some(GoDuration::from_secs(60)),
        ..check(url, pass_when, 1, 0)
    }
}

#[tokio::test]
async fn an_http_answer_tells_its_number_and_its_age() {
    let site = site().await;
    let (_, verdict, message) = make(told(&format!("{site}/5"), "value == 7")).await;
    assert_eq!(verdict, Verdict::Passed, "{message}");
    assert!(message.starts_with("value 7, status 200; http 127.0.0.1 at 20"), "{message}");
    let (_, verdict, message) = make(told(&format!("{site}/200"), "value == 7")).await;
    assert_eq!(verdict, Verdict::Inconclusive);
    assert!(message.contains("stale"), "{message}");
    let (_, verdict, message) = make(told(&format!("{site}/words"), "value == 7")).await;
    assert_eq!(verdict, Verdict::Inconclusive);
    assert!(message.contains("http.timeOf gives neither a time") && !message.contains("yesterday"), "{message}");
}

#[tokio::test]
async fn a_baseline_is_taken_without_being_judged() {
    let site = site().await;
    let taken = OrderedCheck { baseline_only: true, ..told(&format!("{site}/1"), "value <= baseline * 1.2") };
    let report = run_with(&order(vec![taken]), &ALONE, |_, _| None).await;
    let Some(Facts::Check(facts)) = &report.facts else { panic!("no facts") };
    assert!(report.ok, "{}", report.message);
    assert_eq!(facts.baselines.get("depth").and_then(serde_json::Number::as_f64), Some(7.0));
}

#[tokio::test]
async fn the_host_candidate_is_the_candidates_address() {
    let site = site().await;
    let url = site.replace("127.0.0.1", "candidate") + "/1";
    let around = Around { candidate: Some([127, 0, 0, 1].into()), ..ALONE };
    let report = run_with(&order(vec![told(&url, "value == 7")]), &around, |_, _| None).await;
    assert!(report.ok, "{}", report.message);
    assert!(serde_json::to_string(&report).unwrap().contains("http candidate at"));
}
