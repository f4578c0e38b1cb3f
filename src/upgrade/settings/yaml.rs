//! YAML as a tree that keeps every scalar as it was written. Memoria's reader is one of YAML 1.1, ours one of YAML 1.2,
//! and they disagree about what `yes`, `010` or `12:30` mean: here nothing is turned into a value, so nothing changes its
//! meaning. Comments and line breaks are lost.

use std::collections::HashSet;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, options};

/// A node of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Scalar(Scalar),
    List(Vec<Self>),
    Map(Vec<(Scalar, Self)>),
}

/// A scalar's text. A plain one (without quotes) may be a number, a boolean or null; any other is a string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scalar {
    pub text: String,
    pub plain: bool,
}

impl Scalar {
    /// Whether both mean the same to every reader, as far as that can be told without being one.
    pub fn same(&self, other: &Self) -> bool {
        match (self.plain, other.plain) {
            (true, true) | (false, false) if self.text == other.text => true,
            (true, true) => self.text.eq_ignore_ascii_case(&other.text) && self.is_word_with_meaning(),
            (true, false) => self.text == other.text && self.is_surely_a_string(),
            (false, true) => self.text == other.text && other.is_surely_a_string(),
            (false, false) => false,
        }
    }

    fn is_word_with_meaning(&self) -> bool {
        let word = self.text.to_ascii_lowercase();
        ["", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n"].contains(&word.as_str())
    }

    fn is_surely_a_string(&self) -> bool {
        let word = self.text.starts_with(|c: char| c.is_alphabetic() || c == '_') && !self.is_word_with_meaning();
        !self.plain || word || self.text.contains('\n')
    }
}

/// Why a text is not a document that can be merged. Names a line, never a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum YamlError {
    #[error("line {line}, column {column}: it is no YAML")]
    Syntax { line: usize, column: usize },
    #[error("line {line}: the key {key} stands there twice; remove one")]
    DuplicateKey { line: usize, key: String },
    #[error("line {line}: anchors and aliases (& and *) cannot be merged; write the value out")]
    Anchor { line: usize },
    #[error("line {line}: tags (!) and merge keys (<<) cannot be merged; write the value out")]
    Tag { line: usize },
    #[error("line {line}: a key is a list or mapping; Memoria's settings have words as keys")]
    Key { line: usize },
    #[error("line {line}: a second document begins; keep one")]
    Documents { line: usize },
    #[error("line {line}: the document is no mapping of settings")]
    NotAMap { line: usize },
}

/// Reads one document, which must be a mapping. An empty one, and one of comments alone, is an empty mapping.
///
/// # Errors
/// [`YamlError`]
pub fn parse(text: &str) -> Result<Node, YamlError> {
    let options = options! { emit_comments: false };
    let mut reader = Reader { parser: Parser::new_from_str_with_options(text, options) };
    let mut root = None;
    while let Some((event, span)) = reader.next()? {
        match event {
            Event::DocumentStart(..) if root.is_some() => {
                return Err(YamlError::Documents { line: span.start.line() });
            }
            Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd | Event::StreamEnd => {}
            event => {
                let line = span.start.line();
                root = Some(match reader.node(&event, &span)? {
                    Node::Scalar(empty) if empty.plain && ["", "~", "null"].contains(&empty.text.as_str()) => {
                        Node::Map(Vec::new())
                    }
                    map @ Node::Map(_) => map,
                    _ => return Err(YamlError::NotAMap { line }),
                });
            }
        }
    }
    Ok(root.unwrap_or(Node::Map(Vec::new())))
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, YamlError> {
        self.parser.next_event().transpose().map_err(|error: ScanError| {
            let at = error.marker();
            YamlError::Syntax { line: at.line(), column: at.col() + 1 }
        })
    }

    /// What must follow within a node.
    fn inner(&mut self, from: &Span) -> Result<(Event<'a>, Span), YamlError> {
        let at = from.start;
        self.next()?.ok_or(YamlError::Syntax { line: at.line(), column: at.col() + 1 })
    }

    /// The node that this event begins. The parser bounds how deep they lie in each other.
    fn node(&mut self, event: &Event<'a>, span: &Span) -> Result<Node, YamlError> {
        let line = span.start.line();
        if event.is_alias() || event.anchor_id().is_some() {
            return Err(YamlError::Anchor { line });
        }
        if event.tag().is_some() {
            return Err(YamlError::Tag { line });
        }
        match event {
            Event::Scalar(text, style, ..) => {
                Ok(Node::Scalar(Scalar { text: text.to_string(), plain: *style == ScalarStyle::Plain }))
            }
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    match self.inner(span)? {
                        (Event::SequenceEnd, _) => return Ok(Node::List(items)),
                        (event, span) => items.push(self.node(&event, &span)?),
                    }
                }
            }
            Event::MappingStart(..) => self.map(span),
            _ => Err(YamlError::Syntax { line, column: span.start.col() + 1 }),
        }
    }

    fn map(&mut self, span: &Span) -> Result<Node, YamlError> {
        let mut entries = Vec::new();
        let mut known = HashSet::new();
        loop {
            let (event, at) = self.inner(span)?;
            let line = at.start.line();
            if event == Event::MappingEnd {
                return Ok(Node::Map(entries));
            }
            let Node::Scalar(key) = self.node(&event, &at)? else { return Err(YamlError::Key { line }) };
            if key.plain && key.text == "<<" {
                return Err(YamlError::Tag { line });
            }
            if !known.insert(key.text.clone()) {
                return Err(YamlError::DuplicateKey { line, key: key.text });
            }
            let (event, at) = self.inner(span)?;
            entries.push((key, self.node(&event, &at)?));
        }
    }
}

/// Writes a mapping as a document in block form: plain scalars as they were, others in double quotes.
pub fn write(root: &Node) -> String {
    let mut text = String::new();
    match root {
        Node::Map(entries) if entries.is_empty() => text.push_str("{}\n"),
        root => block(root, 0, &mut text),
    }
    text
}

fn block(node: &Node, indent: usize, text: &mut String) {
    match node {
        Node::Scalar(scalar) => {
            text.push_str(&" ".repeat(indent));
            text.push_str(&written(scalar));
            text.push('\n');
        }
        Node::Map(entries) => {
            for (key, value) in entries {
                text.push_str(&" ".repeat(indent));
                text.push_str(&written(key));
                text.push(':');
                match inline(value) {
                    Some(value) => {
                        text.push(' ');
                        text.push_str(&value);
                        text.push('\n');
                    }
                    None => {
                        text.push('\n');
                        block(value, indent + 2, text);
                    }
                }
            }
        }
        Node::List(items) => {
            for item in items {
                let begin = text.len();
                match inline(item) {
                    Some(item) => {
                        text.push_str(&" ".repeat(indent + 2));
                        text.push_str(&item);
                        text.push('\n');
                    }
                    None => block(item, indent + 2, text),
                }
                // The dash takes the place of the first two blanks.
                text.replace_range(begin + indent..=begin + indent, "-");
            }
        }
    }
}

/// What stands on the line of its key or dash.
fn inline(node: &Node) -> Option<String> {
    match node {
        Node::Scalar(scalar) => Some(written(scalar)),
        Node::Map(entries) if entries.is_empty() => Some("{}".to_owned()),
        Node::List(items) if items.is_empty() => Some("[]".to_owned()),
        Node::Map(_) | Node::List(_) => None,
    }
}

fn written(scalar: &Scalar) -> String {
    match scalar.plain {
        // Only a string can have line breaks.
        true if !scalar.text.contains(['\n', '\r']) => match scalar.text.as_str() {
            "" => "~".to_owned(),
            text => text.to_owned(),
        },
        _ => quoted(&scalar.text),
    }
}

/// In double quotes, with an escape for all that a reader may refuse or fold.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\0'..='\u{1f}' | '\u{7f}'..='\u{a0}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}'..='\u{ffff}' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
