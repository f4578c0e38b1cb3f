//! What makes a check pass: a CEL expression over `value`, `baseline`, `status` and `body`. Checked as far as possible
//! before anything runs, and what it says afterwards never contains a body.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use cel::{
    Context, ExecutionError, IdedExpr, Program, Value,
    common::ast::{EntryExpr, Expr, LiteralValue, SourceInfo, operators},
    objects::{Key, Map},
};
use serde_json::Value as Json;

/// Parser and interpreter walk the expression's depth on the stack.
const STACK_BYTES: usize = 16 << 20;
/// Levels of an expression: the interpreter takes tens of kilobytes for each.
const MAX_DEPTH: usize = 64;
/// One evaluation. Only an expression with loops in loops over a large body takes longer.
const EVALUATION: Duration = Duration::from_secs(5);
/// As the CRD's schema bounds it.
const MAX_BYTES: usize = 1024;
/// Paths named in an observed value.
const MAX_PATHS: usize = 4;
/// What the interpreter has, but for operators and macros.
const FUNCTIONS: [&str; 10] =
    ["size", "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string", "bytes"];
/// The variables that a check gives.
const VARIABLES: [&str; 4] = ["status", "body", VALUE, BASELINE];
/// The number that was found.
pub const VALUE: &str = "value";
/// The same number before anything was stopped.
pub const BASELINE: &str = "baseline";

/// Why an expression cannot be used, with the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}, line {line}, column {column}: {why}")]
pub struct ExpressionError {
    /// The field that holds the expression, e.g. `passWhen`.
    pub field: &'static str,
    /// From 1.
    pub line: usize,
    /// From 1, in bytes.
    pub column: usize,
    pub why: String,
}

/// An expression that can be evaluated.
#[derive(Clone)]
pub struct Expression {
    field: &'static str,
    program: Arc<Program>,
    paths: Vec<Path>,
    variables: BTreeSet<String>,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.program.source_info().source).finish()
    }
}

/// An answer of what is checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// HTTP only.
    pub status: Option<u16>,
    /// HTTP only; null when the body is no JSON.
    pub body: Json,
    pub value: Option<f64>,
    pub baseline: Option<f64>,
}

/// What an expression gave.
#[derive(Clone, Debug, PartialEq)]
enum Given {
    Bool(bool),
    Number(f64),
    Text(String),
    /// Of another type, which is named.
    Other(String),
}

/// Why a sample has no verdict. Never shows a value of the body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    #[error("the answer has no {0:?}")]
    NoSuchKey(String),
    #[error("passWhen gives a {0}, not true or false")]
    NotBoolean(String),
    #[error("{0} gives a {1}, not a number")]
    NotNumber(&'static str, String),
    #[error("{0} gives neither a time such as 2026-01-10T03:00:12Z nor seconds since 1970")]
    NotTime(&'static str),
    #[error("{0} does not fit the answer: {1}")]
    Unfit(&'static str, String),
    #[error("{field} took more than {} s; make it simpler", EVALUATION.as_secs())]
    TooLong { field: &'static str },
    #[error("{0} was not evaluated: {1}")]
    NoThread(&'static str, String),
}

/// Reads a `passWhen` and refuses what could never be evaluated: bad syntax, unknown variables and functions.
///
/// # Errors
/// [`ExpressionError`] with the position and what to write.
pub fn compile_expression(text: &str) -> Result<Expression, ExpressionError> {
    compile_field("passWhen", text)
}

/// The same for the expression of another field.
///
/// # Errors
/// [`ExpressionError`] with the position and what to write.
pub fn compile_field(field: &'static str, text: &str) -> Result<Expression, ExpressionError> {
    let at_start = |why: String| ExpressionError { field, line: 1, column: 1, why };
    if text.len() > MAX_BYTES {
        return Err(at_start(format!("it has {} bytes; at most {MAX_BYTES} are read", text.len())));
    }
    let text = text.to_owned();
    let compile = move || {
        let program = Program::compile(&text).map_err(|errors| first_error(field, &errors))?;
        let mut walk = Walk {
            field,
            source: program.source_info(),
            bound: Vec::new(),
            depth: 0,
            paths: BTreeSet::new(),
            variables: BTreeSet::new(),
        };
        walk.expression(program.expression())?;
        let Walk { paths, variables, .. } = walk;
        let paths = paths.into_iter().take(MAX_PATHS).collect();
        Ok(Expression { field, program: Arc::new(program), paths, variables })
    };
    let thread = thread::Builder::new().name("cel-compile".to_owned()).stack_size(STACK_BYTES).spawn(compile);
    thread
        .map_err(|error| at_start(format!("it was not read: {error}; try again")))?
        .join()
        .unwrap_or_else(|_| Err(at_start("the reader of expressions failed on it; write it differently".to_owned())))
}

impl Expression {
    /// Whether it names that variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// Whether a sample passes.
    ///
    /// # Errors
    /// [`EvaluationError`] when that cannot be told.
    pub fn passes(&self, sample: &Sample) -> Result<bool, EvaluationError> {
        match self.evaluate(sample)? {
            Given::Bool(passes) => Ok(passes),
            Given::Number(_) => Err(EvaluationError::NotBoolean("number".to_owned())),
            Given::Text(_) => Err(EvaluationError::NotBoolean("string".to_owned())),
            Given::Other(type_) => Err(EvaluationError::NotBoolean(type_)),
        }
    }

    /// The number that it gives.
    ///
    /// # Errors
    /// [`EvaluationError`] when it gives none.
    pub fn number(&self, sample: &Sample) -> Result<f64, EvaluationError> {
        match self.evaluate(sample)? {
            Given::Number(number) if number.is_finite() => Ok(number),
            Given::Number(_) => Err(EvaluationError::NotNumber(self.field, "number without a value".to_owned())),
            Given::Bool(_) => Err(EvaluationError::NotNumber(self.field, "bool".to_owned())),
            Given::Text(_) => Err(EvaluationError::NotNumber(self.field, "string".to_owned())),
            Given::Other(type_) => Err(EvaluationError::NotNumber(self.field, type_)),
        }
    }

    /// The moment that it gives, in seconds since 1970.
    ///
    /// # Errors
    /// [`EvaluationError`] when it gives none.
    pub fn time(&self, sample: &Sample) -> Result<f64, EvaluationError> {
        let seconds = match self.evaluate(sample)? {
            Given::Number(seconds) => Some(seconds),
            Given::Text(text) => moment(&text),
            Given::Bool(_) | Given::Other(_) => None,
        };
        seconds.filter(|seconds| seconds.is_finite()).ok_or(EvaluationError::NotTime(self.field))
    }

    fn evaluate(&self, sample: &Sample) -> Result<Given, EvaluationError> {
        let (answer, verdict) = mpsc::sync_channel(1);
        let (field, program, sample) = (self.field, Arc::clone(&self.program), sample.clone());
        let evaluate = move || {
            let mut context = Context::default();
            context.add_variable_from_value("status", sample.status.map_or(Value::Null, |s| Value::Int(s.into())));
            context.add_variable_from_value("body", to_cel(&sample.body));
            context.add_variable_from_value(VALUE, sample.value.map_or(Value::Null, Value::Float));
            context.add_variable_from_value(BASELINE, sample.baseline.map_or(Value::Null, Value::Float));
            // The receiver is gone when this took too long.
            let _ = answer.send(match program.execute(&context) {
                Ok(value) => Ok(given(value)),
                Err(error) => Err(without_values(field, error)),
            });
        };
        // It cannot be stopped from outside: one that takes too long is left behind and ends with this Job's process.
        thread::Builder::new()
            .name("cel-evaluate".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(evaluate)
            .map_err(|error| EvaluationError::NoThread(field, error.to_string()))?;
        match verdict.recv_timeout(EVALUATION) {
            Ok(verdict) => verdict,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(EvaluationError::TooLong { field }),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(EvaluationError::Unfit(field, "the interpreter failed on it".to_owned()))
            }
        }
    }

    /// What the sample shows of what the expression names, e.g. `status 200, body.depth 42` or `value 42, baseline 40`.
    pub fn observed(&self, sample: &Sample) -> String {
        let mut parts = Vec::new();
        parts.extend(sample.value.map(|value| format!("value {value}")));
        if self.uses(BASELINE) {
            parts.extend(sample.baseline.map(|baseline| format!("baseline {baseline}")));
        }
        parts.extend(sample.status.map(|status| format!("status {status}")));
        for path in &self.paths {
            let shown = match path.find(&sample.body) {
                Some(Json::Number(number)) => number.to_string(),
                Some(Json::Bool(value)) => value.to_string(),
                Some(Json::Null) => "null".to_owned(),
                // Text may be anybody's.
                Some(Json::String(_) | Json::Array(_) | Json::Object(_)) => continue,
                None => "missing".to_owned(),
            };
            parts.push(format!("{path} {shown}"));
        }
        parts.join(", ")
    }
}

fn given(value: Value) -> Given {
    match value {
        Value::Bool(value) => Given::Bool(value),
        #[expect(clippy::cast_precision_loss, reason = "depths and seconds are far below 2^53")]
        Value::Int(value) => Given::Number(value as f64),
        #[expect(clippy::cast_precision_loss, reason = "depths and seconds are far below 2^53")]
        Value::UInt(value) => Given::Number(value as f64),
        Value::Float(value) => Given::Number(value),
        Value::String(text) => Given::Text(text.to_string()),
        other => Given::Other(other.type_of().to_string()),
    }
}

/// RFC 3339; without an offset it is UTC.
fn moment(text: &str) -> Option<f64> {
    let parsed = text.parse::<jiff::Timestamp>().ok().or_else(|| {
        let civil = text.parse::<jiff::civil::DateTime>().ok()?;
        civil.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    });
    parsed.map(|at| at.as_duration().as_secs_f64())
}

/// A value below `body`, as the expression names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Path(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Field(String),
    Index(usize),
}

impl Path {
    fn find<'a>(&self, body: &'a Json) -> Option<&'a Json> {
        self.0.iter().try_fold(body, |value, step| match step {
            Step::Field(name) => value.get(name),
            Step::Index(at) => value.get(at),
        })
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("body")?;
        self.0.iter().try_for_each(|step| match step {
            Step::Field(name) => write!(f, ".{name}"),
            Step::Index(at) => write!(f, "[{at}]"),
        })
    }
}

/// Goes through an expression once: refuses unknown names, collects the paths below `body`.
struct Walk<'a> {
    field: &'static str,
    source: &'a SourceInfo,
    /// Variables of the macros that are open.
    bound: Vec<String>,
    depth: usize,
    paths: BTreeSet<Path>,
    variables: BTreeSet<String>,
}

impl Walk<'_> {
    fn expression(&mut self, node: &IdedExpr) -> Result<(), ExpressionError> {
        if self.depth > MAX_DEPTH {
            return Err(self.error(node, format!("it is nested more than {MAX_DEPTH} levels deep; make it simpler")));
        }
        self.depth += 1;
        let result = self.level(node);
        self.depth -= 1;
        result
    }

    fn level(&mut self, node: &IdedExpr) -> Result<(), ExpressionError> {
        if let Some(path) = self.path(node) {
            if path.len() > MAX_DEPTH {
                return Err(self.error(node, format!("a path has at most {MAX_DEPTH} parts; make it simpler")));
            }
            self.variables.insert("body".to_owned());
            if !path.is_empty() {
                self.paths.insert(Path(path));
            }
            return Ok(());
        }
        match &node.expr {
            Expr::Unspecified | Expr::Literal(_) => Ok(()),
            Expr::Ident(name) if self.bound.contains(name) => Ok(()),
            Expr::Ident(name) if VARIABLES.contains(&name.as_str()) => {
                self.variables.insert(name.clone());
                Ok(())
            }
            Expr::Ident(name) if name.starts_with('@') => Ok(()),
            Expr::Ident(name) => {
                let known = "there are value and baseline (numbers), status (a number) and body (JSON)";
                Err(self.error(node, format!("{name} is not known; {known}")))
            }
            Expr::Call(call) => {
                let name = call.func_name.as_str();
                if name.starts_with(|c: char| c.is_ascii_alphabetic()) && !FUNCTIONS.contains(&name) {
                    let known = FUNCTIONS.join(", ");
                    return Err(self.error(node, format!("there is no function {name}; there are {known}")));
                }
                call.target.iter().try_for_each(|target| self.expression(target))?;
                call.args.iter().try_for_each(|argument| self.expression(argument))
            }
            Expr::Comprehension(comprehension) => {
                self.expression(&comprehension.iter_range)?;
                self.expression(&comprehension.accu_init)?;
                let before = self.bound.len();
                self.bound.extend([comprehension.iter_var.clone(), comprehension.accu_var.clone()]);
                self.bound.extend(comprehension.iter_var2.clone());
                self.expression(&comprehension.loop_cond)?;
                self.expression(&comprehension.loop_step)?;
                self.expression(&comprehension.result)?;
                self.bound.truncate(before);
                Ok(())
            }
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.expression(element)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| self.entry(&entry.expr)),
            Expr::Select(select) => self.expression(&select.operand),
            Expr::Struct(built) => Err(self.error(node, format!("there is no type {}", built.type_name))),
        }
    }

    fn entry(&mut self, entry: &EntryExpr) -> Result<(), ExpressionError> {
        match entry {
            EntryExpr::MapEntry(entry) => {
                self.expression(&entry.key)?;
                self.expression(&entry.value)
            }
            EntryExpr::StructField(field) => self.expression(&field.value),
        }
    }

    /// The steps below `body`, where the expression is nothing but such a path.
    fn path(&self, node: &IdedExpr) -> Option<Vec<Step>> {
        match &node.expr {
            Expr::Ident(name) if name == "body" && !self.bound.contains(name) => Some(Vec::new()),
            Expr::Select(select) => {
                let mut steps = self.path(&select.operand)?;
                steps.push(Step::Field(select.field.clone()));
                Some(steps)
            }
            Expr::Call(call) if call.func_name == operators::INDEX => {
                let [operand, index] = call.args.as_slice() else { return None };
                let mut steps = self.path(operand)?;
                let Expr::Literal(literal) = &index.expr else { return None };
                steps.push(match literal {
                    LiteralValue::String(name) => Step::Field(name.inner().to_owned()),
                    LiteralValue::Int(at) => Step::Index(usize::try_from(*at.inner()).ok()?),
                    _ => return None,
                });
                Some(steps)
            }
            _ => None,
        }
    }

    fn error(&self, node: &IdedExpr, why: String) -> ExpressionError {
        let offset = self.source.offset_for(node.id).map_or(0, |(start, _)| start as usize);
        let before = self.source.source.get(..offset).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1) + 1;
        ExpressionError { field: self.field, line, column, why }
    }
}

fn first_error(field: &'static str, errors: &cel::ParseErrors) -> ExpressionError {
    let Some(first) = errors.errors.first() else {
        return ExpressionError { field, line: 1, column: 1, why: "it cannot be read".to_owned() };
    };
    let from_one = |place: isize| usize::try_from(place).unwrap_or(1).max(1);
    ExpressionError { field, line: from_one(first.pos.0), column: from_one(first.pos.1), why: first.msg.clone() }
}

/// Whole numbers become `int`, so that `body.depth + 1` means what it says.
fn to_cel(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => number
            .as_i64()
            .map(Value::Int)
            .or_else(|| number.as_u64().map(Value::UInt))
            .or_else(|| number.as_f64().map(Value::Float))
            .unwrap_or(Value::Null),
        Json::String(text) => Value::String(Arc::new(text.clone())),
        Json::Array(items) => Value::List(Arc::new(items.iter().map(to_cel).collect())),
        Json::Object(fields) => {
            let map: HashMap<Key, Value> =
                fields.iter().map(|(name, value)| (Key::String(Arc::new(name.clone())), to_cel(value))).collect();
            Value::Map(Map { map: Arc::new(map) })
        }
    }
}

/// The interpreter's own words would show what is in the body.
fn without_values(field: &'static str, error: ExecutionError) -> EvaluationError {
    let unfit = |why: String| EvaluationError::Unfit(field, why);
    match error {
        ExecutionError::NoSuchKey(name) => EvaluationError::NoSuchKey(name.chars().take(64).collect()),
        ExecutionError::NoSuchOverload(overload) => unfit(overload.to_string()),
        ExecutionError::IndexOutOfBounds(_) => unfit("an index is out of bounds".to_owned()),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
            unfit("a division by zero".to_owned())
        }
        ExecutionError::Overflow(..) => unfit("a number is too large".to_owned()),
        ExecutionError::ValuesNotComparable(left, right) => {
            unfit(format!("{} cannot be compared to {}", left.type_of(), right.type_of()))
        }
        ExecutionError::UnsupportedBinaryOperator(operator, left, right) => unfit(format!(
            "{operator} of {} and {}; a whole number beside value or baseline needs a fraction, e.g. 2.0",
            left.type_of(),
            right.type_of()
        )),
        ExecutionError::FunctionError { function, .. } => unfit(format!("{function} failed")),
        _ => unfit("it has another shape than expected".to_owned()),
    }
}
