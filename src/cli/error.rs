//! What can go wrong for a command, in words for its user, and the exit code.

use std::path::PathBuf;

use kube::config::KubeconfigError;

use super::{Exit, text};

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The kubeconfig that was named cannot be read.
    #[error("cannot use the kubeconfig {path}: name another one with --kubeconfig")]
    ReadKubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<KubeconfigError>,
    },
    /// There is no usable context.
    #[error("the kubeconfig cannot be used: see kubectl config get-contexts, and name one with --context")]
    Kubeconfig(#[source] Box<KubeconfigError>),
    /// The client cannot be made.
    #[error("cannot make a connection from the kubeconfig")]
    Client(#[source] Box<kube::Error>),
    /// A Webhook does not exist.
    #[error("there is no Webhook {namespace}/{name}{}", did_you_mean(.near.as_deref()))]
    NoSuchWebhook {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// A name that exists and is much like it.
        near: Option<String>,
    },
    /// The API server does not know the kind.
    #[error("this cluster has no Webhooks: Posthorn is not installed, or its CustomResourceDefinitions are missing")]
    NotInstalled,
    /// The API server refused the user.
    #[error("you may not {verb} Webhooks in {place}: {message}")]
    NotAllowed {
        /// What was tried.
        verb: &'static str,
        /// Where.
        place: String,
        /// The API server's words.
        message: String,
    },
    /// The API server refused the request itself.
    #[error("the API server refused to {verb} Webhooks in {place}: {message}")]
    Refused {
        /// What was tried.
        verb: &'static str,
        /// Where.
        place: String,
        /// The API server's words.
        message: String,
    },
    /// No answer, or one that says that something is broken.
    #[error("the API server does not answer: see whether kubectl get --raw /readyz works")]
    Unreachable(#[source] Box<kube::Error>),
    /// No such reason.
    #[error("there is no reason {name}{} (kubectl posthorn explain lists all)", did_you_mean(.near.as_deref()))]
    NoSuchReason {
        /// What was asked for.
        name: String,
        /// A reason that is much like it.
        near: Option<String>,
    },
    /// JSON could not be written.
    #[error("cannot write the result as JSON")]
    Json(#[source] serde_json::Error),
}

fn did_you_mean(near: Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!("; did you mean {near}?"))
}

impl CliError {
    /// What an error of the API server means for someone who tried to `verb`
    /// Webhooks in `place`.
    pub(super) fn from_api(error: kube::Error, verb: &'static str, place: &str) -> Self {
        let kube::Error::Api(status) = error else { return Self::Unreachable(Box::new(error)) };
        let (place, message) = (place.to_owned(), status.message.clone());
        match status.code {
            401 | 403 => Self::NotAllowed { verb, place, message },
            404 => Self::NotInstalled,
            429 | 500.. => Self::Unreachable(Box::new(kube::Error::Api(status))),
            _ => Self::Refused { verb, place, message },
        }
    }

    /// The exit code.
    pub const fn exit(&self) -> Exit {
        match self {
            Self::ReadKubeconfig { .. } | Self::Kubeconfig(_) => Exit::Usage,
            Self::NoSuchWebhook { .. } | Self::NoSuchReason { .. } => Exit::NotFound,
            Self::NotAllowed { .. } => Exit::NotAllowed,
            Self::Refused { .. } | Self::Json(_) => Exit::No,
            Self::Client(_) | Self::NotInstalled | Self::Unreachable(_) => Exit::Unreachable,
        }
    }

    /// The error with its causes, in one line that is safe for a terminal.
    pub(super) fn to_text(&self) -> String {
        let mut line = format!("error: {self}");
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let words = error.to_string();
            // Some errors of libraries repeat their cause.
            if !line.contains(&words) {
                line = format!("{line}: {words}");
            }
            cause = error.source();
        }
        text::clean(&line)
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn check(code: u16, expected: Exit) {
        let status = Status::failure("words of the server", "Reason").with_code(code).boxed();
        let error = CliError::from_api(kube::Error::Api(status), "list", "shop");
        assert_eq!(error.exit(), expected, "{code}: {error}");
        assert!(!error.to_text().contains("ApiError: words of the server (words"), "{}", error.to_text());
    }

    #[test]
    fn each_answer_of_the_api_server_has_its_exit_code() {
        check(401, Exit::NotAllowed);
        check(403, Exit::NotAllowed);
        check(404, Exit::Unreachable);
        check(409, Exit::No);
        check(422, Exit::No);
        check(429, Exit::Unreachable);
        check(500, Exit::Unreachable);
        check(503, Exit::Unreachable);
        let broken = kube::Error::LinesCodecMaxLineLengthExceeded;
        assert_eq!(CliError::from_api(broken, "list", "shop").exit(), Exit::Unreachable);
    }

    #[test]
    fn what_does_not_exist_names_what_is_near() {
        let error =
            CliError::NoSuchWebhook { namespace: "shop".into(), name: "biling".into(), near: Some("billing".into()) };
        assert_eq!(error.to_text(), "error: there is no Webhook shop/biling; did you mean billing?");
        assert_eq!(error.exit(), Exit::NotFound);
    }

    #[test]
    fn a_kubeconfig_that_cannot_be_used_is_wrong_use() {
        let error = CliError::Kubeconfig(Box::new(KubeconfigError::CurrentContextNotSet));
        assert_eq!(error.exit(), Exit::Usage);
        assert!(error.to_text().ends_with("failed to determine current context"));
    }
}
