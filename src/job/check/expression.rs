//! What makes a check pass: a CEL expression over `status` and `body`. Checked as far as possible before anything runs,
//! and what it says afterwards never contains a body.

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
const VARIABLES: [&str; 2] = ["status", "body"];

/// Why an expression cannot be used, with the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("passWhen, line {line}, column {column}: {why}")]
pub struct ExpressionError {
    /// From 1.
    pub line: usize,
    /// From 1, in bytes.
    pub column: usize,
    pub why: String,
}

/// An expression that can be evaluated.
#[derive(Clone)]
pub struct Expression {
    program: Arc<Program>,
    paths: Vec<Path>,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.program.source_info().source).finish()
    }
}

/// An answer of the service that is checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub status: u16,
    /// Null when the body is no JSON.
    pub body: Json,
}

/// Why a sample has no verdict. Never shows a value of the body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    #[error("the answer has no {0:?}")]
    NoSuchKey(String),
    #[error("passWhen gives a {0}, not true or false")]
    NotBoolean(String),
    #[error("passWhen does not fit the answer: {0}")]
    Unfit(String),
    #[error("passWhen took more than {} s; make it simpler", EVALUATION.as_secs())]
    TooLong,
    #[error("passWhen was not evaluated: {0}")]
    NoThread(String),
}

/// Reads an expression and refuses what could never be evaluated: bad syntax, unknown variables and functions.
///
/// # Errors
/// [`ExpressionError`] with the position and what to write.
pub fn compile_expression(text: &str) -> Result<Expression, ExpressionError> {
    let at_start = |why: String| ExpressionError { line: 1, column: 1, why };
    if text.len() > MAX_BYTES {
        return Err(at_start(format!("it has {} bytes; at most {MAX_BYTES} are read", text.len())));
    }
    let text = text.to_owned();
    let compile = move || {
        let program = Program::compile(&text).map_err(|errors| first_error(&errors))?;
        let mut walk = Walk { source: program.source_info(), bound: Vec::new(), depth: 0, paths: BTreeSet::new() };
        walk.expression(program.expression())?;
        let paths = walk.paths.into_iter().take(MAX_PATHS).collect();
        Ok(Expression { program: Arc::new(program), paths })
    };
    let thread = thread::Builder::new().name("cel-compile".to_owned()).stack_size(STACK_BYTES).spawn(compile);
    thread
        .map_err(|error| at_start(format!("it was not read: {error}; try again")))?
        .join()
        .unwrap_or_else(|_| Err(at_start("the reader of expressions failed on it; write it differently".to_owned())))
}

impl Expression {
    /// Whether a sample passes.
    ///
    /// # Errors
    /// [`EvaluationError`] when that cannot be told.
    pub fn passes(&self, sample: &Sample) -> Result<bool, EvaluationError> {
        let (answer, verdict) = mpsc::sync_channel(1);
        let (program, sample) = (Arc::clone(&self.program), sample.clone());
        let evaluate = move || {
            let mut context = Context::default();
            context.add_variable_from_value("status", i64::from(sample.status));
            context.add_variable_from_value("body", to_cel(&sample.body));
            // The receiver is gone when this took too long.
            let _ = answer.send(match program.execute(&context) {
                Ok(Value::Bool(passes)) => Ok(passes),
                Ok(other) => Err(EvaluationError::NotBoolean(other.type_of().to_string())),
                Err(error) => Err(without_values(error)),
            });
        };
        // It cannot be stopped from outside: one that takes too long is left behind and ends with this Job's process.
        thread::Builder::new()
            .name("cel-evaluate".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(evaluate)
            .map_err(|error| EvaluationError::NoThread(error.to_string()))?;
        match verdict.recv_timeout(EVALUATION) {
            Ok(verdict) => verdict,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(EvaluationError::TooLong),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(EvaluationError::Unfit("the interpreter failed on it".to_owned()))
            }
        }
    }

    /// Status and the numbers that the expression names, e.g. `status 200, body.depth 42`.
    pub fn observed(&self, sample: &Sample) -> String {
        let mut text = format!("status {}", sample.status);
        for path in &self.paths {
            let shown = match path.find(&sample.body) {
                Some(Json::Number(number)) => number.to_string(),
                Some(Json::Bool(value)) => value.to_string(),
                Some(Json::Null) => "null".to_owned(),
                // Text may be anybody's.
                Some(Json::String(_) | Json::Array(_) | Json::Object(_)) => continue,
                None => "missing".to_owned(),
            };
            text.push_str(&format!(", {path} {shown}"));
        }
        text
    }
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
    source: &'a SourceInfo,
    /// Variables of the macros that are open.
    bound: Vec<String>,
    depth: usize,
    paths: BTreeSet<Path>,
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
            if !path.is_empty() {
                self.paths.insert(Path(path));
            }
            return Ok(());
        }
        match &node.expr {
            Expr::Unspecified | Expr::Literal(_) => Ok(()),
            Expr::Ident(name) if self.bound.contains(name) || VARIABLES.contains(&name.as_str()) => Ok(()),
            Expr::Ident(name) if name.starts_with('@') => Ok(()),
            Expr::Ident(name) => {
                Err(self.error(node, format!("{name} is not known; there are status (a number) and body (JSON)")))
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
        ExpressionError { line, column, why }
    }
}

fn first_error(errors: &cel::ParseErrors) -> ExpressionError {
    let Some(first) = errors.errors.first() else {
        return ExpressionError { line: 1, column: 1, why: "it cannot be read".to_owned() };
    };
    let from_one = |place: isize| usize::try_from(place).unwrap_or(1).max(1);
    ExpressionError { line: from_one(first.pos.0), column: from_one(first.pos.1), why: first.msg.clone() }
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
fn without_values(error: ExecutionError) -> EvaluationError {
    match error {
        ExecutionError::NoSuchKey(name) => EvaluationError::NoSuchKey(name.chars().take(64).collect()),
        ExecutionError::NoSuchOverload(overload) => EvaluationError::Unfit(overload.to_string()),
        ExecutionError::IndexOutOfBounds(_) => EvaluationError::Unfit("an index is out of bounds".to_owned()),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
            EvaluationError::Unfit("a division by zero".to_owned())
        }
        ExecutionError::Overflow(..) => EvaluationError::Unfit("a number is too large".to_owned()),
        ExecutionError::ValuesNotComparable(left, right) => {
            EvaluationError::Unfit(format!("{} cannot be compared to {}", left.type_of(), right.type_of()))
        }
        ExecutionError::FunctionError { function, .. } => EvaluationError::Unfit(format!("{function} failed")),
        _ => EvaluationError::Unfit("it has another shape than passWhen expects".to_owned()),
    }
}
