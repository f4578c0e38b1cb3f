//! Instant queries of Prometheus' HTTP API: one series, one number, and how old the samples behind it are.

use serde_json::Value as Json;

use super::request::Response;

/// Why a query gave no number that could be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error("the server answers {status}{what}")]
    Refused { status: u16, what: String },
    #[error("the answer is none of Prometheus' query API; prometheus.url names the server, without /api/v1/query")]
    NotPrometheus,
    #[error("the answer is incomplete, the server warns: {0}")]
    Warned(String),
    #[error("the query gives no series: nothing was scraped, or the selector finds nothing")]
    Empty,
    #[error("the query gives {0} series; aggregate it to one, e.g. with sum(…)")]
    Several(usize),
    #[error("the query gives a {0}; it has to give a scalar or an instant vector")]
    NotInstant(String),
    #[error("the query gives {0}, which is no number")]
    NotNumber(String),
}

/// What a query gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub value: f64,
    /// When it was evaluated, by the server's clock, in seconds since 1970. Says nothing about the samples' age.
    pub evaluated_at: f64,
}

/// The one number in an answer.
///
/// # Errors
/// [`QueryError`] when there is none, or more than one.
pub fn point(response: &Response) -> Result<Point, QueryError> {
    let text = |value: Option<&Json>| value.and_then(Json::as_str).unwrap_or_default().chars().take(120).collect();
    let body = &response.body;
    match body.get("status").and_then(Json::as_str) {
        Some("success") => {}
        Some("error") => {
            let (kind, why): (String, String) = (text(body.get("errorType")), text(body.get("error")));
            return Err(QueryError::Refused { status: response.status, what: format!(": {kind}: {why}") });
        }
        _ if response.status == 200 => return Err(QueryError::NotPrometheus),
        _ => return Err(QueryError::Refused { status: response.status, what: String::new() }),
    }
    if let Some(first) = body.get("warnings").and_then(Json::as_array).and_then(|warnings| warnings.first()) {
        return Err(QueryError::Warned(text(Some(first))));
    }
    let data = body.get("data").ok_or(QueryError::NotPrometheus)?;
    let result = data.get("result").ok_or(QueryError::NotPrometheus)?;
    let pair = match data.get("resultType").and_then(Json::as_str) {
        Some("scalar") => result,
        Some("vector") => match result.as_array().map(Vec::as_slice) {
            Some([]) => return Err(QueryError::Empty),
            Some([series]) => series.get("value").ok_or(QueryError::NotPrometheus)?,
            Some(all) => return Err(QueryError::Several(all.len())),
            None => return Err(QueryError::NotPrometheus),
        },
        Some(other) => return Err(QueryError::NotInstant(other.chars().take(40).collect())),
        None => return Err(QueryError::NotPrometheus),
    };
    let at = pair.get(0).and_then(Json::as_f64).ok_or(QueryError::NotPrometheus)?;
    let number = pair.get(1).and_then(Json::as_str).ok_or(QueryError::NotPrometheus)?;
    match number.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(Point { value, evaluated_at: at }),
        _ => Err(QueryError::NotNumber(number.chars().take(40).collect())),
    }
}

/// The aggregations behind which the samples' own times can be asked for without knowing more of PromQL.
const AGGREGATIONS: [&str; 5] = ["sum", "min", "max", "avg", "count"];

/// The query for the oldest sample's time behind `query`, where that is a selector or one aggregation of a selector.
/// Of anything else (`rate`, ranges, offsets, arithmetic) the samples' times cannot be had by looking at the text.
pub fn derived_time_query(query: &str) -> Option<String> {
    let query = query.trim();
    if is_selector(query) {
        return Some(format!("min(timestamp({query}))"));
    }
    let name_end = query.find(|c: char| !c.is_ascii_alphabetic())?;
    let (name, rest) = query.split_at(name_end);
    if !AGGREGATIONS.contains(&name.to_ascii_lowercase().as_str()) {
        return None;
    }
    let rest = without_grouping(rest.trim())?;
    let inner = rest.strip_prefix('(')?;
    let end = closing(inner)?;
    let (inner, after) = (inner.get(..end)?.trim(), inner.get(end + 1..)?.trim());
    (without_grouping(after)?.is_empty() && is_selector(inner)).then(|| format!("min(timestamp({inner}))"))
}

/// What comes after `by (…)` or `without (…)`, if there is one.
fn without_grouping(text: &str) -> Option<&str> {
    let lower = text.to_ascii_lowercase();
    let Some(word) = ["by", "without"].into_iter().find(|word| lower.starts_with(word)) else { return Some(text) };
    let list = text.get(word.len()..)?.trim().strip_prefix('(')?;
    Some(list.get(closing(list)? + 1..)?.trim())
}

/// Where the parenthesis that was opened before `text` ends.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0_u32, None, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some('"' | '\''), '\\') => escaped = true,
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'' | '`') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') if depth == 0 => return Some(at),
            (None, ')') => depth -= 1,
            (None, _) => {}
        }
    }
    None
}

/// A metric name, matchers in braces, or both; nothing after them.
fn is_selector(text: &str) -> bool {
    let name_end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let (name, rest) = text.split_at(name_end);
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        return false;
    }
    let rest = rest.trim();
    if rest.is_empty() {
        return !name.is_empty() && !AGGREGATIONS.contains(&name);
    }
    let Some(matchers) = rest.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else { return false };
    // Braces and parentheses inside quotes are a matcher's value; outside they would be another selector.
    let (mut quote, mut escaped) = (None, false);
    for c in matchers.chars() {
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some('"' | '\''), '\\') => escaped = true,
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'' | '`') => quote = Some(c),
            (None, '{' | '}' | '(' | ')' | '[' | ']') => return false,
            (None, _) => {}
        }
    }
    quote.is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Point, QueryError, derived_time_query, point};
    use crate::job::check::request::Response;

    fn answer(status: u16, body: serde_json::Value) -> Response {
        Response { status, body, at: 0.0 }
    }

    fn vector(result: serde_json::Value) -> Response {
        answer(200, json!({"status": "success", "data": {"resultType": "vector", "result": result}}))
    }

    #[test]
    fn one_series_or_a_scalar_is_a_number() {
        let one = vector(json!([{"metric": {}, "value": [1_700_000_000.5, "93"]}]));
        assert_eq!(point(&one), Ok(Point { value: 93.0, evaluated_at: 1_700_000_000.5 }));
        let scalar = json!({"status": "success", "data": {"resultType": "scalar", "result": [1_700_000_000, "0.5"]}});
        assert_eq!(point(&answer(200, scalar)), Ok(Point { value: 0.5, evaluated_at: 1_700_000_000.0 }));
    }

    #[test]
    fn everything_else_says_what_it_is() {
        let series = |value: &str| json!({"metric": {}, "value": [1, value]});
        assert_eq!(point(&vector(json!([]))), Err(QueryError::Empty));
        assert_eq!(point(&vector(json!([series("1"), series("2")]))), Err(QueryError::Several(2)));
        for text in ["NaN", "+Inf", "-Inf"] {
            assert_eq!(point(&vector(json!([series(text)]))), Err(QueryError::NotNumber(text.to_owned())));
        }
        let matrix = json!({"status": "success", "data": {"resultType": "matrix", "result": []}});
        assert_eq!(point(&answer(200, matrix)), Err(QueryError::NotInstant("matrix".to_owned())));
        let refused = answer(400, json!({"status": "error", "errorType": "bad_data", "error": "parse error"}));
        assert_eq!(point(&refused).unwrap_err().to_string(), "the server answers 400: bad_data: parse error");
        assert_eq!(point(&answer(502, json!(null))).unwrap_err().to_string(), "the server answers 502");
        assert_eq!(point(&answer(200, json!({"hello": 1}))), Err(QueryError::NotPrometheus));
        let mut partial = vector(json!([series("1")]));
        partial.body["warnings"] = json!(["store 3 did not answer"]);
        assert_eq!(point(&partial), Err(QueryError::Warned("store 3 did not answer".to_owned())));
    }

    #[test]
    fn the_samples_times_are_asked_for_behind_a_selector_or_one_aggregation() {
        for (query, expected) in [
            ("memoria_queue_depth", "memoria_queue_depth"),
            (" a:b{job=\"x\"} ", "a:b{job=\"x\"}"),
            ("{__name__=\"a\"}", "{__name__=\"a\"}"),
            ("sum(a)", "a"),
            ("sum by (pod, x) (a{b=\")(\"})", "a{b=\")(\"}"),
            ("max(a{b='}'}) without (c)", "a{b='}'}"),
        ] {
            assert_eq!(derived_time_query(query), Some(format!("min(timestamp({expected}))")), "{query}");
        }
        for query in [
            "",
            "1",
            "sum",
            "rate(a[5m])",
            "a[5m]",
            "a offset 5m",
            "a + b",
            "sum(a) + 1",
            "sum(a + b)",
            "sum(rate(a[1m]))",
            "topk(1, a)",
            "sum(a) by",
            "sum(a{b=\"c)",
            "a{b=\"c\"} or d{e=\"f\"}",
            "vector(1)",
            "sum(a",
        ] {
            assert_eq!(derived_time_query(query), None, "{query}");
        }
    }
}
