//! GRUB's script language (GRUB manual, section 6.2 "Writing full configuration files directly").

use std::iter::Peekable;
use std::rc::Rc;
use std::vec::IntoIter;

/// Deepest nesting of blocks.
const MAX_DEPTH: usize = 64;

/// Statements in their order.
pub type Block = Rc<Vec<Statement>>;

/// A statement.
#[derive(Debug)]
pub enum Statement {
    /// A command, perhaps with a block, as `menuentry` has.
    Command { words: Vec<Word>, block: Option<Block> },
    /// Conditions with what follows from them.
    If { branches: Vec<(Block, Block)>, otherwise: Option<Block> },
    /// Repeats while the condition is as said.
    While { condition: Block, wanted: bool, body: Block },
    /// Repeats for each word.
    For { name: String, words: Vec<Word>, body: Block },
    /// Defines a function.
    Function { name: String, body: Block },
}

/// A word before its variables are replaced.
pub type Word = Vec<Piece>;

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// As it is; if quoted, the word exists even if this is empty.
    Text { text: String, quoted: bool },
    /// The value of a variable, which is split at blanks unless quoted.
    Variable { name: String, quoted: bool },
}

#[derive(Debug, PartialEq)]
enum Token {
    Word(Word),
    End,
    Open,
    Close,
}

/// Parses a script. What cannot be parsed ends it: whatever was whole before counts, as it does for GRUB, which
/// executes while it reads. The second value is the line of the mistake, if there is one.
pub fn parse(text: &str) -> (Block, Option<usize>) {
    let mut parser = Parser { tokens: tokens(text).into_iter().peekable(), line: 1, failed: None };
    let block = parser.block(&[], MAX_DEPTH);
    if parser.failed.is_none() && parser.tokens.peek().is_some() {
        parser.failed = Some(parser.line);
    }
    (block, parser.failed)
}

fn tokens(text: &str) -> Vec<(Token, usize)> {
    let mut tokens = Vec::new();
    let mut word: Word = Vec::new();
    let mut line = 1;
    let mut chars = text.chars().peekable();
    let flush = |word: &mut Word, tokens: &mut Vec<(Token, usize)>, line: usize| {
        if !word.is_empty() {
            tokens.push((Token::Word(std::mem::take(word)), line));
        }
    };
    while let Some(char) = chars.next() {
        match char {
            '\n' | ';' => {
                flush(&mut word, &mut tokens, line);
                tokens.push((Token::End, line));
                line += usize::from(char == '\n');
            }
            ' ' | '\t' | '\r' => flush(&mut word, &mut tokens, line),
            '{' | '}' => {
                flush(&mut word, &mut tokens, line);
                tokens.push((if char == '{' { Token::Open } else { Token::Close }, line));
            }
            '#' if word.is_empty() => while chars.next_if(|&c| c != '\n').is_some() {},
            '\\' => match chars.next() {
                Some('\n') => line += 1,
                Some(escaped) => push(&mut word, escaped, true),
                None => {}
            },
            '\'' => {
                push_text(&mut word, String::new(), true);
                for quoted in chars.by_ref().take_while(|&c| c != '\'') {
                    line += usize::from(quoted == '\n');
                    push(&mut word, quoted, true);
                }
            }
            '"' => {
                push_text(&mut word, String::new(), true);
                line += double_quoted(&mut chars, &mut word);
            }
            '$' => variable(&mut chars, &mut word, false),
            other => push(&mut word, other, false),
        }
    }
    flush(&mut word, &mut tokens, line);
    tokens
}

type Chars<'a> = Peekable<std::str::Chars<'a>>;

/// Reads to the closing quote and returns how many lines that were.
fn double_quoted(chars: &mut Chars<'_>, word: &mut Word) -> usize {
    let mut lines = 0;
    while let Some(char) = chars.next() {
        match char {
            '"' => break,
            '$' => variable(chars, word, true),
            '\\' => match chars.next_if(|c| matches!(c, '$' | '"' | '\\' | '\n')) {
                Some('\n') => lines += 1,
                Some(escaped) => push(word, escaped, true),
                None => push(word, '\\', true),
            },
            other => {
                lines += usize::from(other == '\n');
                push(word, other, true);
            }
        }
    }
    lines
}

fn variable(chars: &mut Chars<'_>, word: &mut Word, quoted: bool) {
    let mut name = String::new();
    if chars.next_if_eq(&'{').is_some() {
        name.extend(chars.by_ref().take_while(|&c| c != '}'));
    } else if let Some(special) = chars.next_if(|c| matches!(c, '?' | '*' | '@' | '#')) {
        name.push(special);
    } else if chars.peek().is_some_and(char::is_ascii_digit) {
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            name.push(digit);
        }
    } else {
        while let Some(char) = chars.next_if(|&c| c.is_ascii_alphanumeric() || c == '_') {
            name.push(char);
        }
    }
    if name.is_empty() {
        push(word, '$', quoted);
    } else {
        word.push(Piece::Variable { name, quoted });
    }
}

fn push(word: &mut Word, char: char, is_quoted: bool) {
    match word.last_mut() {
        Some(Piece::Text { text, quoted }) if *quoted == is_quoted => text.push(char),
        _ => push_text(word, char.into(), is_quoted),
    }
}

fn push_text(word: &mut Word, text: String, quoted: bool) {
    word.push(Piece::Text { text, quoted });
}

struct Parser {
    tokens: Peekable<IntoIter<(Token, usize)>>,
    line: usize,
    failed: Option<usize>,
}

impl Parser {
    /// Statements up to one of the keywords, which stays, or a closing brace or the end.
    fn block(&mut self, until: &[&str], depth: usize) -> Block {
        let mut statements = Vec::new();
        while self.failed.is_none() {
            while matches!(self.tokens.peek(), Some((Token::End, _))) {
                self.next();
            }
            let keyword = match self.tokens.peek() {
                None | Some((Token::Close, _)) => break,
                Some((Token::Word(word), _)) => keyword(word).map(str::to_owned),
                _ => None,
            };
            if keyword.as_deref().is_some_and(|keyword| until.contains(&keyword)) {
                break;
            }
            if depth == 0 {
                self.failed = Some(self.line);
                break;
            }
            match self.statement(keyword.as_deref(), depth - 1) {
                Some(statement) => statements.push(statement),
                None => {
                    self.failed.get_or_insert(self.line);
                }
            }
        }
        Rc::new(statements)
    }

    fn statement(&mut self, keyword: Option<&str>, depth: usize) -> Option<Statement> {
        match keyword {
            Some("if") => self.condition(depth),
            Some(word @ ("while" | "until")) => {
                self.next();
                let condition = self.block(&["do"], depth);
                self.expect("do")?;
                let body = self.block(&["done"], depth);
                self.expect("done")?;
                Some(Statement::While { condition, wanted: word == "while", body })
            }
            Some("for") => {
                self.next();
                let name = self.name()?;
                self.expect("in")?;
                let words = self.words();
                while matches!(self.tokens.peek(), Some((Token::End, _))) {
                    self.next();
                }
                self.expect("do")?;
                let body = self.block(&["done"], depth);
                self.expect("done")?;
                Some(Statement::For { name, words, body })
            }
            Some("function") => {
                self.next();
                let name = self.name()?;
                while matches!(self.tokens.peek(), Some((Token::End, _))) {
                    self.next();
                }
                let body = self.braced(depth)?;
                Some(Statement::Function { name, body })
            }
            Some("then" | "elif" | "else" | "fi" | "do" | "done") => None,
            _ => self.command(depth),
        }
    }

    fn condition(&mut self, depth: usize) -> Option<Statement> {
        self.next();
        let mut branches = Vec::new();
        let mut otherwise = None;
        loop {
            let condition = self.block(&["then"], depth);
            self.expect("then")?;
            let body = self.block(&["elif", "else", "fi"], depth);
            branches.push((condition, body));
            match self.word_name()?.as_str() {
                "elif" => {}
                "else" => {
                    otherwise = Some(self.block(&["fi"], depth));
                    self.expect("fi")?;
                    break;
                }
                _ => break,
            }
        }
        Some(Statement::If { branches, otherwise })
    }

    fn command(&mut self, depth: usize) -> Option<Statement> {
        let words = self.words();
        let block = match self.tokens.peek() {
            Some((Token::Open, _)) => Some(self.braced(depth)?),
            _ => None,
        };
        (!words.is_empty() || block.is_some()).then_some(Statement::Command { words, block })
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while matches!(self.tokens.peek(), Some((Token::Word(_), _))) {
            if let Some(Token::Word(word)) = self.next() {
                words.push(word);
            }
        }
        words
    }

    fn braced(&mut self, depth: usize) -> Option<Block> {
        (self.next()? == Token::Open).then_some(())?;
        let body = self.block(&[], depth);
        (self.next()? == Token::Close).then_some(body)
    }

    fn name(&mut self) -> Option<String> {
        self.word_name()
    }

    /// The next token, which must be a plain word.
    fn word_name(&mut self) -> Option<String> {
        match self.next()? {
            Token::Word(word) => keyword(&word).map(str::to_owned),
            _ => None,
        }
    }

    fn expect(&mut self, wanted: &str) -> Option<()> {
        (self.word_name()? == wanted).then_some(())
    }

    fn next(&mut self) -> Option<Token> {
        let (token, line) = self.tokens.next()?;
        self.line = line;
        Some(token)
    }
}

/// The text of a word that is nothing but unquoted text.
fn keyword(word: &Word) -> Option<&str> {
    match word.as_slice() {
        [Piece::Text { text, quoted: false }] => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str, quoted: bool) -> Piece {
        Piece::Text { text: text.into(), quoted }
    }

    #[test]
    fn words_keep_what_was_quoted() {
        let (block, failed) = parse("set a=\"x $y\" 'it''s' ${z}1 \\$ # comment\\\n b\\\n c");
        assert_eq!(failed, None);
        let Statement::Command { words, .. } = &block[0] else { panic!("{block:?}") };
        assert_eq!(words[0], [text("set", false)]);
        let y = Piece::Variable { name: "y".into(), quoted: true };
        assert_eq!(
            words[1],
            [text("a=", false), text("", true), text("x ", true), y]
                .into_iter()
                .filter(|piece| *piece != text("", true))
                .collect::<Vec<_>>()
        );
        assert_eq!(
            words[3],
            [Piece::Variable { name: "z".into(), quoted: false }, text("1", false)]
        );
        assert_eq!(words[4], [text("$", true)]);
        let Statement::Command { words, .. } = &block[1] else { panic!("{block:?}") };
        assert_eq!(words.len(), 2);
    }

    #[test]
    fn what_comes_before_a_mistake_counts() {
        let (block, failed) = parse("set a=1\nif true; then\nset b=2\n");
        assert_eq!((block.len(), failed.is_some()), (1, true));
        assert_eq!(parse("a }\nb").1, Some(1));
        let deep = "if true; then ".repeat(10_000);
        assert!(parse(&deep).1.is_some());
    }
}
