//! `kubectl posthorn explain`: what a reason means and what to do about it.

use super::{CliError, Exit, text};
use crate::api::Reason;

#[derive(clap::Args, Debug)]
pub(super) struct ExplainArguments {
    /// A reason such as BodyMismatch, from a condition or an Event.
    reason: Option<String>,
}

pub(super) fn run(arguments: &ExplainArguments) -> Result<Exit, CliError> {
    match &arguments.reason {
        None => text::print(&all()),
        Some(name) => text::print(&one(name)?),
    }
    Ok(Exit::Done)
}

fn one(name: &str) -> Result<String, CliError> {
    let Some(reason) = Reason::ALL.iter().find(|r| r.as_str().eq_ignore_ascii_case(name)) else {
        let near = text::near(name, Reason::ALL.iter().map(|r| r.as_str())).map(str::to_owned);
        return Err(CliError::NoSuchReason { name: name.to_owned(), near });
    };
    let explanation = reason.explanation();
    Ok(format!("{reason}\n  What it means:  {}\n  What to do:     {}\n", explanation.meaning, explanation.cure))
}

fn all() -> String {
    let mut rows = vec![["REASON".to_owned(), "MEANING".to_owned()]];
    rows.extend(Reason::ALL.iter().map(|r| [r.as_str().to_owned(), r.explanation().meaning.to_owned()]));
    text::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_explained_in_any_case() {
        let expected = "BodyMismatch\n  What it means:  The endpoint answered with success, but the answer was not the challenge.\n  What to do:     Make the receiver answer with exactly the challenge that it got. Often the route is served by a web page and not by the handler.\n";
        assert_eq!(one("BodyMismatch").unwrap(), expected);
        assert_eq!(one("bodymismatch").unwrap(), expected);
    }

    #[test]
    fn a_reason_that_does_not_exist_names_the_near_one() {
        let error = one("BodyMissmatch").unwrap_err();
        assert_eq!(error.exit(), Exit::NotFound);
        assert_eq!(
            error.to_text(),
            "error: there is no reason BodyMissmatch; did you mean BodyMismatch? (kubectl posthorn explain lists all)"
        );
    }

    #[test]
    fn every_reason_is_listed() {
        assert_eq!(all().lines().count(), Reason::ALL.len() + 1);
    }
}
