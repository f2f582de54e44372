//! The form of a command's arguments, written much as Redis's documentation writes it.
//!
//! Owns the notation and how a request is drawn from it. Knows no command and no argument's values: what a
//! word in lower case stands for, [`crate::differential::argument`] says.
//!
//! | written | drawn |
//! |---|---|
//! | `WITHSCORES` | the word itself, in any case |
//! | `score` | a value of this kind |
//! | `(a\|b c)` | one of these |
//! | `[a b]` | this, or nothing |
//! | `{a b}` | this, once or up to four times |
//! | `<a\|b c>` | some of these, in any order |
//! | `#{a}` | this, none to three times, behind the number of times |

use std::iter::Peekable;

use fastrand::Rng;

use super::argument::Kind;

/// The form of some arguments that follow each other.
pub(super) type Form = Vec<Part>;

/// See the module.
#[derive(Debug)]
pub(super) enum Part {
    Word(&'static str),
    Value(Kind),
    OneOf(Vec<Form>),
    Perhaps(Form),
    Repeated(Form),
    Options(Vec<Form>),
    Counted(Form),
}

/// What is drawn for one argument.
#[derive(Clone, Copy, Debug)]
pub(super) enum Drawn {
    Word(&'static str),
    Value(Kind),
    /// How often the next ones are repeated.
    Count(usize),
}

/// Reads a form; panics where it is malformed, since we have written it.
pub(super) fn parse(text: &'static str) -> Form {
    let mut tokens = tokens(text).into_iter().peekable();
    let mut forms = alternatives(&mut tokens);
    assert!(
        tokens.next().is_none(),
        "what is not opened is closed: {text}"
    );
    assert_eq!(forms.len(), 1, "alternatives stand in brackets: {text}");
    forms.remove(0)
}

fn tokens(text: &'static str) -> Vec<&'static str> {
    let mut tokens = Vec::new();
    for word in text.split_whitespace() {
        let mut rest = word;
        while let Some(at) = rest.find(|c| "()[]{}<>|#".contains(c)) {
            tokens.push(&rest[..at]);
            tokens.push(&rest[at..=at]);
            rest = &rest[at + 1..];
        }
        tokens.push(rest);
    }
    tokens.retain(|token| !token.is_empty());
    tokens
}

fn alternatives(tokens: &mut Peekable<impl Iterator<Item = &'static str>>) -> Vec<Form> {
    let mut forms = vec![Form::new()];
    while let Some(token) = tokens.next_if(|token| !matches!(*token, ")" | "]" | "}" | ">")) {
        let part = match token {
            "|" => {
                forms.push(Form::new());
                continue;
            }
            "(" => Part::OneOf(bracketed(tokens, ")")),
            "[" => Part::Perhaps(only(bracketed(tokens, "]"))),
            "{" => Part::Repeated(only(bracketed(tokens, "}"))),
            "<" => Part::Options(bracketed(tokens, ">")),
            "#" if tokens.next_if_eq(&"{").is_some() => Part::Counted(only(bracketed(tokens, "}"))),
            word if word.starts_with(|c: char| c.is_ascii_lowercase()) => {
                Part::Value(Kind::by_name(word))
            }
            word => Part::Word(word),
        };
        forms.last_mut().expect("there is one").push(part);
    }
    forms
}

fn bracketed(tokens: &mut Peekable<impl Iterator<Item = &'static str>>, end: &str) -> Vec<Form> {
    let forms = alternatives(tokens);
    assert_eq!(tokens.next(), Some(end), "what is opened is closed");
    forms
}

fn only(mut forms: Vec<Form>) -> Form {
    assert_eq!(forms.len(), 1, "alternatives stand in ( ) or < >");
    forms.remove(0)
}

/// Draws arguments of this form.
pub(super) fn draw(form: &Form, rng: &mut Rng, out: &mut Vec<Drawn>) {
    for part in form {
        match part {
            Part::Word(word) => out.push(Drawn::Word(word)),
            Part::Value(kind) => out.push(Drawn::Value(*kind)),
            Part::OneOf(forms) => draw(&forms[rng.usize(..forms.len())], rng, out),
            Part::Perhaps(form) => {
                if rng.bool() {
                    draw(form, rng, out);
                }
            }
            Part::Repeated(form) => {
                // Often once, since what is repeated must be right each time.
                let times = if rng.bool() { 1 } else { rng.usize(1..=4) };
                (0..times).for_each(|_| draw(form, rng, out));
            }
            Part::Options(forms) => {
                let mut order: Vec<&Form> = forms.iter().collect();
                rng.shuffle(&mut order);
                // Few, since many exclude each other.
                let most = rng.usize(0..=order.len().min(4));
                order[..most].iter().for_each(|form| draw(form, rng, out));
            }
            Part::Counted(form) => {
                let times = if rng.u8(..8) == 0 {
                    0
                } else {
                    rng.usize(1..=3)
                };
                out.push(Drawn::Count(times));
                (0..times).for_each(|_| draw(form, rng, out));
            }
        }
    }
}
