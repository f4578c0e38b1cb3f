//! Checks against a real HTTP server on this machine.

mod sources;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    http::{HeaderMap, StatusCode, header::LOCATION},
    routing::get,
};
use serde_json::json;

use super::{EvaluationError, Sample, compile_expression, run_with, source::Around};
use crate::{
    api::{GoDuration, release::Verdict, upgrade::Category},
    job::protocol::{CheckOrder, CheckSource, Facts, JobReport, MAX_REPORT_BYTES, OrderedCheck},
};

/// A server whose `/depth` counts down from 3 with each request; its address.
async fn serve() -> String {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let flapping = Arc::new(AtomicUsize::new(0));
    let router = Router::new()
        .route(
            "/depth",
            get(move || async move {
                let depth = 3usize.saturating_sub(asked.fetch_add(1, Ordering::SeqCst));
                json!({"depth": depth, "secret": "private words"}).to_string()
            }),
        )
        .route("/count", get(move || async move { count.load(Ordering::SeqCst).to_string() }))
        .route(
            "/flaps",
            get(move || async move {
                let ok = flapping.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
                json!({ "ok": ok }).to_string()
            }),
        )
        .route("/steady", get(|| async { json!({"ok": true}).to_string() }))
        .route(
            "/settings",
            get(|headers: HeaderMap| async move {
                let right = headers.get("x-api-key").is_some_and(|key| key == "the-key");
                if right { StatusCode::OK } else { StatusCode::UNAUTHORIZED }
            }),
        )
        .route("/moved", get(|| async { (StatusCode::FOUND, [(LOCATION, "/steady")]) }))
        .route("/large", get(|| async { "x".repeat((1 << 20) + 1) }))
        .route("/hangs", get(|| async { tokio::time::sleep(Duration::from_secs(30)).await }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

fn check(url: &str, pass_when: &str, within: u64, stable_for: u64) -> OrderedCheck {
    OrderedCheck {
        name: "depth".to_owned(),
        required: true,
        within: GoDuration::from_secs(within),
        every: GoDuration::from_secs(1),
        stable_for: GoDuration::from_secs(stable_for),
        pass_when: pass_when.to_owned(),
        source: CheckSource::Http,
        url: url.to_owned(),
        headers: Vec::new(),
        query: String::new(),
        time_query: String::new(),
        own_database: false,
        value_of: None,
        time_of: None,
        fresh_within: None,
        since_start: false,
        draining: None,
        baseline: None,
        baseline_only: false,
    }
}

const ALONE: Around<'static> = Around { context: None, database: None, candidate: None };

fn order(checks: Vec<OrderedCheck>) -> CheckOrder {
    CheckOrder { checks, database: None }
}

async fn make(check: OrderedCheck) -> (JobReport, Verdict, String) {
    let report = run_with(&order(vec![check]), &ALONE, |_, _| None).await;
    let Some(Facts::Check(facts)) = &report.facts else { panic!("no facts") };
    let (verdict, message) = (facts.checks[0].result, facts.checks[0].message.clone());
    (report, verdict, message)
}

#[tokio::test]
async fn a_check_is_sampled_until_it_passes() {
    let server = serve().await;
    let (report, verdict, message) = make(check(&format!("{server}/depth"), "body.depth <= 1", 20, 0)).await;
    assert_eq!((report.ok, report.reason.as_str(), verdict), (true, "Done", Verdict::Passed));
    assert!(message.starts_with("status 200, body.depth 1; http 127.0.0.1 at 20"), "{message}");
    let asked = reqwest::get(format!("{server}/count")).await.unwrap().text().await.unwrap();
    assert_eq!(asked, "3", "no sample after it passed");
}

#[tokio::test]
async fn a_check_that_does_not_pass_in_time_has_failed() {
    let server = serve().await;
    let (report, verdict, message) = make(check(&format!("{server}/depth"), "body.depth > 5", 2, 0)).await;
    assert_eq!((report.ok, report.reason.as_str(), verdict), (false, "CheckFailed", Verdict::Failed));
    assert_eq!(report.category, Some(Category::Candidate));
    assert!(message.starts_with("not passed within 2s; last: status 200, body.depth "), "{message}");
    assert!(report.message.contains("depth (not passed"));
    assert!(!serde_json::to_string(&report).unwrap().contains("private words"));
}

#[tokio::test]
async fn passing_now_and_then_is_not_passing() {
    let server = serve().await;
    let (_, verdict, message) = make(check(&format!("{server}/flaps"), "body.ok", 4, 2)).await;
    assert_eq!(verdict, Verdict::Failed, "{message}");
    let begun = Instant::now();
    let (report, verdict, _) = make(check(&format!("{server}/steady"), "body.ok", 10, 2)).await;
    assert!(report.ok && verdict == Verdict::Passed);
    assert!(begun.elapsed() >= Duration::from_secs(2) && begun.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn no_fresh_answer_is_inconclusive() {
    let server = serve().await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (url, pass_when, expected) in [
        (format!("http://{closed}/x?token=geheim"), "status == 200", "127.0.0.1 cannot be asked"),
        (format!("{server}/large"), "status == 200", "more than 1 MiB"),
        (format!("{server}/hangs"), "status == 200", "no answer in time"),
        (format!("{server}/steady"), "body.missing > 1", "the answer has no \"missing\""),
        (format!("{server}/steady"), "body", "gives a map, not true or false"),
        ("http://no-such-host.invalid/".to_owned(), "status == 200", "no-such-host.invalid cannot be asked"),
        ("http://169.254.169.254/latest".to_owned(), "status == 200", "an address of the node or the cloud"),
    ] {
        let (report, verdict, message) = make(check(&url, pass_when, 1, 0)).await;
        assert_eq!((report.ok, verdict), (false, Verdict::Inconclusive), "{url}: {message}");
        assert!(message.contains(expected), "{url}: {message}");
        assert_eq!((report.reason.as_str(), report.category), ("CheckInconclusive", Some(Category::Environment)));
        assert!(!message.contains("geheim"));
    }
}

#[tokio::test]
async fn a_redirect_is_an_answer_of_its_own() {
    let server = serve().await;
    let (report, _, message) = make(check(&format!("{server}/moved"), "status == 302 && body == null", 2, 0)).await;
    assert!(report.ok, "{message}");
}

#[tokio::test]
async fn headers_come_from_secrets_and_are_never_shown() {
    let server = serve().await;
    let with_key = OrderedCheck {
        headers: vec!["X-Trace".to_owned(), "X-API-Key".to_owned()],
        ..check(&format!("{server}/settings"), "status == 200", 1, 0)
    };
    let order = order(vec![check("http://127.0.0.1:1/", "true", 1, 0), with_key]);
    let value = |i, j| Some(if (i, j) == (1, 1) { "the-key\n" } else { "other" }.to_owned());
    let report = run_with(&order, &ALONE, value).await;
    let Some(Facts::Check(facts)) = &report.facts else { panic!("no facts") };
    assert_eq!(facts.checks[1].result, Verdict::Passed, "{}", facts.checks[1].message);
    let wrong = run_with(&order, &ALONE, |_, _| Some("wrong-key".to_owned())).await;
    let text = serde_json::to_string(&wrong).unwrap();
    assert!(text.contains("status 401") && !text.contains("wrong-key"), "{text}");
    let absent = run_with(&order, &ALONE, |_, _| None).await;
    assert!(serde_json::to_string(&absent).unwrap().contains("header X-Trace has no value"));
}

#[tokio::test]
async fn checks_run_side_by_side_and_only_required_ones_decide() {
    let server = serve().await;
    let mut checks: Vec<_> = (0..32)
        .map(|at| OrderedCheck {
            name: format!("a-check-with-a-rather-long-name-numb-{at:03}"),
            required: false,
            ..check(&format!("{server}/steady"), "body.ok == false", 2, 0)
        })
        .collect();
    checks[7] = OrderedCheck { required: true, ..check(&format!("{server}/steady"), "body.ok", 2, 0) };
    let begun = Instant::now();
    let report = run_with(&order(checks), &ALONE, |_, _| None).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(report.ok, "{}", report.message);
    assert_eq!(report.message, "1 of 32 checks passed, and all that are required");
    let text = serde_json::to_string(&report).unwrap();
    assert!(text.len() <= MAX_REPORT_BYTES, "{}", text.len());
    let Some(Facts::Check(facts)) = report.facts else { panic!("no facts") };
    assert_eq!(facts.checks.len(), 32);
    assert!(facts.checks[0].message.starts_with("not passed within"), "{}", facts.checks[0].message);
}

#[tokio::test]
async fn a_bad_expression_ends_its_check_at_once_with_the_position() {
    let begun = Instant::now();
    let (report, verdict, message) =
        make(check("http://127.0.0.1:1/", "status == 200 &&\n bodi.depth < 3", 60, 0)).await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!((report.ok, verdict), (false, Verdict::Inconclusive));
    assert!(message.starts_with("passWhen, line 2, column 2: bodi is not known; there are value and"), "{message}");
}

#[test]
fn what_could_never_be_evaluated_is_refused_at_once() {
    for (text, expected) in [
        ("status ==", "line 1, column "),
        ("status == 200 && frobnicate(body)", "there is no function frobnicate"),
        ("body.items.all(x, y > 1)", "y is not known"),
        ("body.items.exists(x, x > 1) && x", "x is not known"),
        ("Thing{a: 1} == body", "Thing"),
        ("", "line 1"),
    ] {
        let message = compile_expression(text).unwrap_err().to_string();
        assert!(message.contains(expected), "{text}: {message}");
    }
    let long = compile_expression(&format!("status == {}", "1".repeat(1024))).unwrap_err().to_string();
    assert!(long.contains("1024"), "{long}");
}

#[test]
fn deep_expressions_do_not_bring_the_reader_down() {
    let texts = [
        format!("body{} == 1", "['a']".repeat(190)),
        format!("body{} == 1", "[0]".repeat(300)),
        format!("status == 200{}", " && true".repeat(120)),
        format!("{}status == 1{}", "(".repeat(500), ")".repeat(500)),
        format!("{}true", "!".repeat(1000)),
        format!("body{} == 1", ".a".repeat(500)),
        format!("{}1{} == body", "[".repeat(500), "]".repeat(500)),
        format!("1{} == body", "+1".repeat(500)),
        format!("{}true", "true?true:".repeat(100)),
    ];
    for text in texts {
        let on_a_small_stack =
            std::thread::Builder::new().name("small".to_owned()).stack_size(256 << 10).spawn(move || {
                if let Ok(expression) = compile_expression(&text) {
                    let sample = Sample { status: Some(200), body: json!({"a": 1}), ..Sample::default() };
                    let _ = expression.passes(&sample);
                    expression.observed(&sample).len()
                } else {
                    0
                }
            });
        on_a_small_stack.unwrap().join().unwrap();
    }
}

#[test]
fn expressions_say_what_they_seem_to_say() {
    let sample = Sample {
        status: Some(200),
        body: json!({
            "depth": 3, "rate": 0.5, "big": u64::MAX, "name": "queue", "empty": null,
            "items": [{"n": 1}, {"n": 2}], "a-b": {"c": true}, "size": 9,
        }),
        ..Sample::default()
    };
    for (text, expected) in [
        ("status == 200 && body.depth <= 100", true),
        ("body.depth + 1 == 4", true),
        ("body.depth < 3.5 && body.rate < 1", true),
        ("body.big > body.depth", true),
        ("body['a-b'].c", true),
        ("body.items[1].n == 2 && size(body.items) == 2 && body.items.size() == 2", true),
        ("body.items.all(i, i.n > 0) && body.items.exists(i, i.n == 2)", true),
        ("body.items.map(i, i.n).exists(n, n == 3)", false),
        ("body.items.filter(i, i.n > 1).size() == 1", true),
        ("has(body.depth) && !has(body.nothing)", true),
        ("'depth' in body", true),
        ("body.name.startsWith('qu') && body.name.endsWith('e') && body.name.contains('ueu')", true),
        ("body.name.matches('^q[a-z]+$')", true),
        ("int('3') == body.depth && double(body.depth) > 2.5 && string(body.depth) == '3'", true),
        ("uint(body.depth) == 3u && size(bytes(body.name)) == 5", true),
        ("body.empty == null ? body.rate > 0.4 : false", true),
        ("status in [200, 204]", true),
    ] {
        let expression = compile_expression(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(expression.passes(&sample), Ok(expected), "{text}");
    }
}

#[test]
fn what_is_observed_are_numbers_and_never_text() {
    let body = json!({"depth": 3, "name": "private", "deep": [{"n": 2.5}], "on": false});
    let sample = Sample { status: Some(503), body, ..Sample::default() };
    let observed = |text: &str| compile_expression(text).unwrap().observed(&sample);
    assert_eq!(observed("status == 200 && body.depth < 3"), "status 503, body.depth 3");
    assert_eq!(observed("body.name == 'x' && body['deep'][0].n > 1"), "status 503, body.deep[0].n 2.5");
    assert_eq!(observed("body.gone > 1 || body.on"), "status 503, body.gone missing, body.on false");
    let unfit = compile_expression("body.name > 3").unwrap().passes(&sample).unwrap_err();
    assert!(matches!(&unfit, EvaluationError::Unfit(_, why) if !why.contains("private")), "{unfit}");
    let unfit = compile_expression("int(body.name) > 3").unwrap().passes(&sample).unwrap_err().to_string();
    assert!(!unfit.contains("private"), "{unfit}");
}

#[test]
fn an_expression_that_takes_too_long_is_given_up() {
    let numbers: Vec<u32> = (0..300).collect();
    let text = "body.all(a, body.all(b, body.all(c, a + b + c >= 0)))";
    let begun = Instant::now();
    let verdict = compile_expression(text).unwrap().passes(&Sample { body: json!(numbers), ..Sample::default() });
    assert_eq!(verdict, Err(EvaluationError::TooLong { field: "passWhen" }));
    assert!(begun.elapsed() < Duration::from_secs(20));
}
