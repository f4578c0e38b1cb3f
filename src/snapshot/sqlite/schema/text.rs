//! SQL text in one spelling: without comments and white space, words in lower case, quotes only where they are needed.
//! SQLite keeps the text of each object as somebody once wrote it.

/// A piece of SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A keyword, an unquoted name or a number, in lower case.
    Word(String),
    /// A quoted name, without its quotes.
    Name(String),
    /// A string or blob literal, as written.
    Literal(String),
    Symbol(char),
}

impl Token {
    pub fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Word(found) if found == word)
    }

    /// The name that this token is, quoted or not.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Word(name) | Self::Name(name) => Some(name),
            Self::Literal(_) | Self::Symbol(_) => None,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Word(text) | Self::Literal(text) => text.clone(),
            Self::Name(name) if is_plain(name) => name.clone(),
            Self::Name(name) => format!("\"{}\"", name.replace('"', "\"\"")),
            Self::Symbol(symbol) => symbol.to_string(),
        }
    }
}

/// In lower case and of letters, digits and `_` alone, so that quotes around it say nothing.
fn is_plain(name: &str) -> bool {
    let mut letters = name.chars();
    letters.next().is_some_and(|first| first == '_' || first.is_ascii_lowercase())
        && letters.all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
}

pub fn tokens(sql: &str) -> Vec<Token> {
    let (letters, mut at, mut tokens) = (sql.chars().collect::<Vec<_>>(), 0, Vec::new());
    let char_at = |at: usize| letters.get(at).copied().unwrap_or_default();
    while at < letters.len() {
        let (first, second) = (char_at(at), char_at(at + 1));
        match first {
            c if c.is_whitespace() => at += 1,
            '-' if second == '-' => at = find(&letters, at, "\n"),
            '/' if second == '*' => at = find(&letters, at + 2, "*/"),
            '\'' => {
                let (text, end) = quoted(&letters, at, '\'');
                tokens.push(Token::Literal(format!("'{}'", text.replace('\'', "''"))));
                at = end;
            }
            '"' | '`' | '[' => {
                let (text, end) = quoted(&letters, at, if first == '[' { ']' } else { first });
                tokens.push(Token::Name(text));
                at = end;
            }
            'x' | 'X' if second == '\'' => {
                let (text, end) = quoted(&letters, at + 1, '\'');
                tokens.push(Token::Literal(format!("x'{}'", text.to_lowercase())));
                at = end;
            }
            c if is_word(c) => {
                let end = (at..letters.len()).find(|at| !is_word(char_at(*at))).unwrap_or(letters.len());
                let word: String = letters.iter().take(end).skip(at).collect();
                tokens.push(Token::Word(word.to_lowercase()));
                at = end;
            }
            symbol => {
                tokens.push(Token::Symbol(symbol));
                at += 1;
            }
        }
    }
    tokens
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$' | '.') || !c.is_ascii()
}

/// Behind the next place where this stands, or the end.
fn find(letters: &[char], from: usize, wanted: &str) -> usize {
    let wanted: Vec<char> = wanted.chars().collect();
    let found = (from..letters.len()).find(|at| letters.get(*at..*at + wanted.len()) == Some(wanted.as_slice()));
    found.map_or(letters.len(), |at| at + wanted.len())
}

/// What is between the quote at `from` and its end, a doubled quote being one, and where to go on.
fn quoted(letters: &[char], from: usize, quote: char) -> (String, usize) {
    let (mut text, mut at) = (String::new(), from + 1);
    while let Some(letter) = letters.get(at) {
        if *letter != quote {
            text.push(*letter);
            at += 1;
        } else if quote != ']' && letters.get(at + 1) == Some(&quote) {
            text.push(quote);
            at += 2;
        } else {
            return (text, at + 1);
        }
    }
    (text, at)
}

pub fn join(tokens: &[Token]) -> String {
    tokens.iter().map(Token::text).collect::<Vec<_>>().join(" ")
}

/// The text in one spelling.
pub fn normal(sql: &str) -> String {
    join(&tokens(sql))
}

/// A default in one spelling, without parentheses around the whole.
pub fn normal_default(sql: &str) -> String {
    let mut tokens = tokens(sql);
    while tokens.first() == Some(&Token::Symbol('(')) && closing(&tokens, 0) == Some(tokens.len() - 1) {
        tokens.pop();
        tokens.remove(0);
    }
    join(&tokens)
}

/// Where the parenthesis that opens at `from` is closed.
pub fn closing(tokens: &[Token], from: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token {
            Token::Symbol('(') => depth += 1,
            Token::Symbol(')') if depth == 1 => return Some(at),
            Token::Symbol(')') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelling_does_not_matter_and_everything_else_does() {
        let one = normal("CREATE TABLE \"t\" (a  INTEGER, -- the key\n [b c] text DEFAULT 'It''s  A' /* x */)");
        assert_eq!(one, "create table t ( a integer , \"b c\" text default 'It''s  A' )");
        assert_eq!(one, normal("create table `t`(`a` integer,\"b c\" TEXT default 'It''s  A')"));
        assert_ne!(normal("DEFAULT 'a'"), normal("DEFAULT 'A'"));
        assert_ne!(normal("DEFAULT 'a'"), normal("DEFAULT a"));
        assert_eq!(normal("X'AB' 1.5e3"), "x'ab' 1.5e3");
        assert_eq!(normal("'not ended"), "'not ended'");
    }

    #[test]
    fn parentheses_around_a_default_go_and_inner_ones_stay() {
        assert_eq!(normal_default("((1))"), "1");
        assert_eq!(normal_default("(1) + (2)"), "( 1 ) + ( 2 )");
        assert_eq!(normal_default("CURRENT_TIMESTAMP"), "current_timestamp");
    }
}
