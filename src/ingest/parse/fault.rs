//! What is wrong with a request, and where.

use std::borrow::Cow;

use crate::runtime::problem::FieldError;

/// Places that are told of at most.
pub const ERRORS_MAX: usize = 16;

/// What is wrong with a value, for people.
pub(super) type Fault = Cow<'static, str>;

/// Why a request has no events that could be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The body is of no kind that is taken: 415.
    MediaType(FieldError),
    /// There is too much of it: 413.
    TooLarge(FieldError),
    /// Fields are wrong, at most [`ERRORS_MAX`]: 400.
    Invalid(Vec<FieldError>),
}

impl Rejection {
    pub(super) fn media_type() -> Self {
        Self::MediaType(FieldError {
            pointer: None,
            header: Some("content-type".to_owned()),
            detail: "send application/json, application/cloudevents+json or application/cloudevents-batch+json in \
                     UTF-8, or any type with the headers of a binary CloudEvent (ce-specversion, ce-id, ce-source, \
                     ce-type)"
                .to_owned(),
        })
    }

    pub(super) fn encoding() -> Self {
        Self::MediaType(FieldError {
            pointer: None,
            header: Some("content-encoding".to_owned()),
            detail: "compressed bodies are not taken; send the body as it is".to_owned(),
        })
    }

    pub(super) fn too_large(pointer: Option<String>, detail: String) -> Self {
        Self::TooLarge(FieldError { pointer, header: None, detail })
    }
}

/// Collects what is wrong.
#[derive(Debug, Default)]
pub(super) struct Faults {
    errors: Vec<FieldError>,
    too_large: Option<FieldError>,
}

impl Faults {
    pub(super) fn header(&mut self, name: &str, detail: impl Into<String>) {
        self.push(FieldError { pointer: None, header: Some(name.to_owned()), detail: detail.into() });
    }

    pub(super) fn pointer(&mut self, pointer: String, detail: impl Into<String>) {
        self.push(FieldError { pointer: Some(pointer), header: None, detail: detail.into() });
    }

    /// An event is too large. That decides the status of the answer.
    pub(super) fn too_large(&mut self, pointer: Option<String>, detail: String) {
        self.too_large.get_or_insert(FieldError { pointer, header: None, detail });
    }

    fn push(&mut self, error: FieldError) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(error);
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.errors.len() >= ERRORS_MAX
    }

    /// The value, unless something was wrong.
    pub(super) fn unless_any<T>(self, value: T) -> Result<T, Rejection> {
        match self.too_large {
            Some(error) => Err(Rejection::TooLarge(error)),
            None if self.errors.is_empty() => Ok(value),
            None => Err(Rejection::Invalid(self.errors)),
        }
    }
}
