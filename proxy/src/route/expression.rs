//! Regular expressions as Envoy has them: RE2's, which reads text byte by byte (as Latin-1), and whose `\d`, `\s`, `\w` and
//! `\b` are about ASCII. So `.` is one byte of a letter that has two.

use std::borrow::Cow;
use std::convert::Infallible;

use regex::{Regex, RegexBuilder};
use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::{
    Assertion, AssertionKind, Ast, ClassPerl, ClassPerlKind, ClassSetItem, Span, Visitor, visit,
};

/// A compiled expression may use so much memory; the control plane has the same limit. It matches in time linear in the
/// text.
const BYTES: usize = 1024 * 1024;

/// An expression to match texts by.
#[derive(Debug)]
pub struct Expression(Box<Regex>);

impl Expression {
    /// Matches a text as a whole.
    ///
    /// # Errors
    /// What is wrong with the expression.
    pub fn whole(expression: &str) -> Result<Expression, String> {
        compile(&format!("^(?:{})$", as_re2(expression)?))
    }

    /// Matches any part of a text.
    ///
    /// # Errors
    /// What is wrong with the expression.
    pub fn part(expression: &str) -> Result<Expression, String> {
        compile(&as_re2(expression)?)
    }

    /// Whether the text is so.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(&by_bytes(text))
    }

    /// How many groups there are, with the whole.
    pub fn groups(&self) -> usize {
        self.0.captures_len()
    }

    /// The text with what is matched replaced, wherever it is; `$1` stands for the first group.
    pub fn replaced<'t>(&self, text: &'t str, by: &str) -> Cow<'t, str> {
        if text.is_ascii() && by.is_ascii() {
            return self.0.replace_all(text, by);
        }
        let (text, by) = (by_bytes(text), by_bytes(by));
        let replaced = self.0.replace_all(&text, &*by);
        // A character is a byte: there are no others.
        let bytes: Vec<u8> = replaced.chars().filter_map(|byte| u8::try_from(byte).ok()).collect();
        String::from_utf8_lossy(&bytes).into_owned().into()
    }
}

fn compile(expression: &str) -> Result<Expression, String> {
    let built = RegexBuilder::new(expression).size_limit(BYTES).build();
    built.map(|regex| Expression(Box::new(regex))).map_err(|error| error.to_string())
}

/// Each byte as a character of its own.
fn by_bytes(text: &str) -> Cow<'_, str> {
    if text.is_ascii() { text.into() } else { text.bytes().map(char::from).collect::<String>().into() }
}

/// The same in the words of our library, which takes these for all of Unicode.
fn as_re2(expression: &str) -> Result<String, String> {
    let expression = &*by_bytes(expression);
    let parsed = Parser::new().parse(expression).map_err(|error| error.to_string())?;
    let found = visit(&parsed, Ascii::default()).unwrap_or_else(|never| match never {});
    let (mut written, mut from) = (String::with_capacity(expression.len()), 0);
    for (span, instead) in found {
        written.push_str(&expression[from..span.start.offset]);
        written.push_str(instead);
        from = span.end.offset;
    }
    written.push_str(&expression[from..]);
    Ok(written)
}

/// What is to be written otherwise, and how, from the left to the right.
#[derive(Default)]
struct Ascii(Vec<(Span, &'static str)>);

impl Ascii {
    fn class(&mut self, class: &ClassPerl) {
        let instead = match (&class.kind, class.negated) {
            (ClassPerlKind::Digit, false) => "[0-9]",
            (ClassPerlKind::Digit, true) => "[^0-9]",
            (ClassPerlKind::Space, false) => r"[\t\n\f\r ]",
            (ClassPerlKind::Space, true) => r"[^\t\n\f\r ]",
            (ClassPerlKind::Word, false) => "[0-9A-Za-z_]",
            (ClassPerlKind::Word, true) => "[^0-9A-Za-z_]",
        };
        self.0.push((class.span, instead));
    }

    fn assertion(&mut self, assertion: &Assertion) {
        match assertion.kind {
            AssertionKind::WordBoundary => self.0.push((assertion.span, r"(?-u:\b)")),
            AssertionKind::NotWordBoundary => self.0.push((assertion.span, r"(?-u:\B)")),
            _ => {}
        }
    }
}

impl Visitor for Ascii {
    type Output = Vec<(Span, &'static str)>;
    type Err = Infallible;

    fn finish(self) -> Result<Self::Output, Infallible> {
        Ok(self.0)
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Infallible> {
        match ast {
            Ast::ClassPerl(class) => self.class(class),
            Ast::Assertion(assertion) => self.assertion(assertion),
            _ => {}
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Infallible> {
        if let ClassSetItem::Perl(class) = item {
            self.class(class);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_bytes_and_classes_are_about_ascii() {
        for (expression, matches, differs) in [
            (r"\w+", &["zoe_9"][..], &["zoë", "محمد", ""][..]),
            (r"\W", &["-"], &["e", "_", "ë"]),
            (r"\d{2}", &["42"], &["٤٢"]),
            (r"\D+", &["٤", "a"], &["4"]),
            (r"a\sb", &["a b", "a\tb"], &["a\u{a0}b", "a\u{b}b"]),
            (r"[\w.-]+@x", &["a.b-c@x"], &["ä@x"]),
            (r"[^\d\s]+", &["٤", "\u{a0}"], &["4", " "]),
            (r"(?i)k", &["K"], &["\u{212a}"]),
            (r"(a|\w\.)+", &["ab.a"], &["aé."]),
            (r"\\w", &[r"\w"], &["a"]),
            (r"a|b", &["a", "b"], &["ab"]),
            ("ë..", &["ëë", "ëab"], &["ëa"]),
            (r"\pL.", &["ë", "ab"], &["-a"]),
        ] {
            let whole = Expression::whole(expression).expect(expression);
            assert!(matches.iter().all(|text| whole.is_match(text)), "{expression}");
            assert!(!differs.iter().any(|text| whole.is_match(text)), "{expression}");
        }
        let boundary = Expression::part(r"\bzo\b").unwrap();
        assert!(boundary.is_match("zoë") && !boundary.is_match("zoe"));
        let within = Expression::part(r"o\B").unwrap();
        assert!(within.is_match("zoe") && !within.is_match("zoë"));
    }

    #[test]
    fn what_is_not_ascii_stays_itself() {
        let expression = Expression::part("/(.*)/ë").unwrap();
        assert_eq!(expression.groups(), 2);
        assert_eq!(expression.replaced("/zoë/ë", "/${1}/é"), "/zoë/é");
        assert_eq!(expression.replaced("/zoe/e", "/x"), "/zoe/e");
    }

    #[test]
    fn brackets_do_not_escape_from_the_whole() {
        for expression in ["a)|(b", "(", "[a", r"\"] {
            assert!(Expression::whole(expression).is_err(), "{expression}");
        }
    }
}
