//! Regular expressions that mean the same to all who match by them: our proxy's library takes more than RE2 does, which
//! Envoy has (<https://github.com/google/re2/wiki/Syntax>), and one expression that Envoy refuses costs it all routes.

use std::convert::Infallible;

use pontoon_proxy::route::expression::Expression;
use regex_syntax::ast::{
    AssertionKind, Ast, ClassSetBinaryOp, ClassSetItem, ClassUnicode, ClassUnicodeKind, Flag, Flags,
    FlagsItemKind, GroupKind, HexLiteralKind, Literal, LiteralKind, RepetitionKind, RepetitionOp,
    RepetitionRange, Span, Visitor, parse::Parser, visit,
};

/// As often RE2 repeats, all levels of repetition multiplied.
const REPETITIONS: u32 = 1000;
const CATEGORIES: &[&str] = &[
    "Any", "C", "Cc", "Cf", "Co", "L", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc", "Me", "Mn", "N", "Nd", "Nl",
    "No", "P", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S", "Sc", "Sk", "Sm", "So", "Z", "Zl", "Zp", "Zs",
];
const SCRIPTS: &[&str] = &[
    "Arabic",
    "Cyrillic",
    "Devanagari",
    "Greek",
    "Han",
    "Hangul",
    "Hebrew",
    "Hiragana",
    "Katakana",
    "Latin",
    "Thai",
];

/// What is wrong with an expression that the proxies would not all take, or not all understand alike.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let wrong = |error: &dyn std::fmt::Display| {
        let error = error.to_string();
        let last = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("expected a regular expression in RE2 syntax: {last}")
    };
    let ast = Parser::new().parse(text).map_err(|error| wrong(&error))?;
    let found = visit(&ast, Walk { text, times: Vec::new(), found: None });
    if let Some((part, problem)) = found.unwrap_or_else(|never| match never {}) {
        return Err(wrong(&format!("`{part}`: {problem}")));
    }
    Expression::whole(text).map(drop).map_err(|error| wrong(&error))
}

/// Goes through an expression.
struct Walk<'t> {
    text: &'t str,
    /// How often each repetition around the current place repeats.
    times: Vec<u32>,
    /// The first part that RE2 does not have, and why.
    found: Option<(&'t str, &'static str)>,
}

impl Walk<'_> {
    fn refuse(&mut self, at: &Span, problem: &'static str) {
        let part = self.text.get(at.start.offset..at.end.offset).unwrap_or_default();
        self.found.get_or_insert((part, problem));
    }

    fn literal(&mut self, literal: &Literal) {
        match literal.kind {
            LiteralKind::HexFixed(HexLiteralKind::UnicodeShort | HexLiteralKind::UnicodeLong)
            | LiteralKind::HexBrace(HexLiteralKind::UnicodeShort | HexLiteralKind::UnicodeLong) => {
                self.refuse(&literal.span, "a character by its number is written \\x{...}");
            }
            LiteralKind::Superfluous if literal.c == '_' => {
                self.refuse(&literal.span, "an underscore is written without a backslash");
            }
            _ => {}
        }
    }

    fn unicode(&mut self, class: &ClassUnicode) {
        let is_known = match &class.kind {
            ClassUnicodeKind::OneLetter(letter) => CATEGORIES.contains(&letter.to_string().as_str()),
            ClassUnicodeKind::Named(name) => CATEGORIES.contains(&&**name) || SCRIPTS.contains(&&**name),
            ClassUnicodeKind::NamedValue { .. } => false,
        };
        if !is_known {
            self.refuse(&class.span, "expected a general category in short, as Lu, or a widely used script");
        }
    }

    fn flags(&mut self, flags: &Flags) {
        for item in &flags.items {
            if let FlagsItemKind::Flag(Flag::Unicode | Flag::CRLF | Flag::IgnoreWhitespace) = item.kind {
                self.refuse(&item.span, "of flags there are i, m, s and U");
            }
        }
    }

    fn repetition(&mut self, op: &RepetitionOp) {
        let RepetitionKind::Range(range) = &op.kind else { return self.times.push(1) };
        let (RepetitionRange::Exactly(times)
        | RepetitionRange::AtLeast(times)
        | RepetitionRange::Bounded(_, times)) = *range;
        self.times.push(times.max(1));
        let all = self.times.iter().fold(1, |all: u32, times| all.saturating_mul(*times));
        if all > REPETITIONS {
            self.refuse(&op.span, "no more than 1000 repetitions, all levels multiplied");
        }
        let written = self.text.get(op.span.start.offset..op.span.end.offset).unwrap_or_default();
        if written.starts_with("{,") || written.contains(char::is_whitespace) {
            self.refuse(&op.span, "a repetition is written {n}, {n,} or {n,m}");
        }
    }
}

impl<'t> Visitor for Walk<'t> {
    type Output = Option<(&'t str, &'static str)>;
    type Err = Infallible;

    fn finish(self) -> Result<Self::Output, Infallible> {
        Ok(self.found)
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Infallible> {
        match ast {
            Ast::Flags(set) => self.flags(&set.flags),
            Ast::Literal(literal) => self.literal(literal),
            Ast::ClassUnicode(class) => self.unicode(class),
            Ast::Assertion(assertion) => match assertion.kind {
                AssertionKind::StartLine
                | AssertionKind::EndLine
                | AssertionKind::StartText
                | AssertionKind::EndText
                | AssertionKind::WordBoundary
                | AssertionKind::NotWordBoundary => {}
                _ => self.refuse(&assertion.span, "of the boundaries of a word there are \\b and \\B"),
            },
            Ast::Repetition(repetition) => {
                if let Ast::Repetition(_) = &*repetition.ast {
                    self.refuse(&repetition.span, "what is repeated already is repeated as a group, (?:...)");
                }
                self.repetition(&repetition.op);
            }
            Ast::Group(group) => match &group.kind {
                GroupKind::NonCapturing(flags) => self.flags(flags),
                GroupKind::CaptureName { name, .. } => {
                    if name.name.contains(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
                        self.refuse(&name.span, "the name of a group has letters, digits and _");
                    }
                }
                GroupKind::CaptureIndex(_) => {}
            },
            Ast::Empty(_)
            | Ast::Dot(_)
            | Ast::ClassPerl(_)
            | Ast::ClassBracketed(_)
            | Ast::Alternation(_)
            | Ast::Concat(_) => {}
        }
        Ok(())
    }

    fn visit_post(&mut self, ast: &Ast) -> Result<(), Infallible> {
        if let Ast::Repetition(_) = ast {
            self.times.pop();
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Infallible> {
        match item {
            ClassSetItem::Literal(literal) => self.literal(literal),
            ClassSetItem::Range(range) => {
                self.literal(&range.start);
                self.literal(&range.end);
            }
            ClassSetItem::Unicode(class) => self.unicode(class),
            ClassSetItem::Bracketed(class) => {
                self.refuse(&class.span, "no class within a class; a bracket in one is written \\[");
            }
            ClassSetItem::Empty(_)
            | ClassSetItem::Ascii(_)
            | ClassSetItem::Perl(_)
            | ClassSetItem::Union(_) => {}
        }
        Ok(())
    }

    fn visit_class_set_binary_op_pre(&mut self, op: &ClassSetBinaryOp) -> Result<(), Infallible> {
        self.refuse(&op.span, "no &&, -- and ~~ between classes");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_re2_takes_is_taken() {
        let taken = [
            "",
            "/orders/[0-9]+(/.*)?",
            r"^(?i:/api/v\d)(?P<rest>.*)$",
            "(?<rest>.*)",
            r"[[:alpha:]_\-\]\[.^-]+",
            r"\x41\x{1F600}\t\/\%\-",
            r"\p{Greek}\pL\P{Lu}[^\p{Nd}]",
            "a*?b+?c??d{2,5}?",
            "(a{10}){100}",
            "(?:a*)*",
            r"\bword\B",
            "(?sU)a|(?m)^b$|",
            "[a-z-]",
        ];
        let wrong = taken.iter().filter_map(|text| check(text).err());
        assert_eq!(wrong.collect::<Vec<_>>(), [""; 0]);
    }

    #[test]
    fn what_re2_does_not_take_or_takes_otherwise_is_refused_with_the_part() {
        let refused = [
            ("/[a-z]{1,1001}", "`{1,1001}`"),
            ("(a{101}){10}", "`{101}`"),
            ("/a**", "`a**`"),
            ("a{,5}", "decimal"),
            ("a{ 2 }", "`{ 2 }`"),
            ("(?x)a b", "`x`"),
            ("(?-u:a)", "`u`"),
            ("(?R)a", "`R`"),
            (r"/\u0041", r"`\u0041`"),
            (r"\U00000041", r"`\U00000041`"),
            (r"\_", r"`\_`"),
            (r"[\w--\d]", r"`\w--\d`"),
            ("[a-z&&[^b]]+", "`a-z&&[^b]`"),
            ("[a[bc]]", "`[bc]`"),
            (r"\b{start}a", r"`\b{start}`"),
            (r"\<a", r"`\<`"),
            (r"\p{Letter}", r"`\p{Letter}`"),
            (r"\p{sc=Greek}", r"`\p{sc=Greek}`"),
            ("(?<a.b>c)", "`a.b`"),
            ("a(", "unclosed group"),
            ("(?=a)", "look-around"),
        ];
        let wrong = refused.iter().filter_map(|(text, part)| match check(text) {
            Err(error)
                if error.starts_with("expected a regular expression in RE2 syntax: ")
                    && error.contains(part) =>
            {
                None
            }
            other => Some((text, other)),
        });
        assert_eq!(wrong.collect::<Vec<_>>(), []);
    }
}
