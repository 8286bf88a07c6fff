//! What bollard's errors mean for a caller.

use std::error::Error as StdError;
use std::io::ErrorKind;

use bollard::errors::Error;

use crate::{BoxError, EngineError};

/// A call that failed: either the engine answered with a status that the call must interpret, or it is an error anyway.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The engine's answer was an error status.
    Status { operation: &'static str, code: u16, message: String },
    /// Whatever the call was, this is what it means.
    Error(EngineError),
}

/// Statuses that have a meaning of their own in some calls.
pub(crate) const NOT_FOUND: u16 = 404;
pub(crate) const CONFLICT: u16 = 409;
/// What a gateway in front of an engine, or an engine that is starting, answers.
const UNAVAILABLE: u16 = 503;

impl Fault {
    /// Reads an error of `operation` at `host`.
    pub(crate) fn read(operation: &'static str, host: &str, error: Error) -> Self {
        if let Error::DockerResponseServerError { status_code: code, message } = error {
            if code == UNAVAILABLE {
                return Self::Error(unavailable(operation, host, message.into()));
            }
            return Self::Status { operation, code, message };
        }
        let read = if is_not_permitted(&error) {
            EngineError::NotPermitted { operation, host: host.to_owned(), source: error.into() }
        } else if is_cut_off(&error) {
            unavailable(operation, host, error.into())
        } else {
            EngineError::BadReply { operation, source: error.into() }
        };
        Self::Error(read)
    }

    /// The status, if the engine answered with one.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            Self::Error(_) => None,
        }
    }
}

impl From<Fault> for EngineError {
    /// A status that the call did not interpret is a refusal.
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Status { operation, message, .. } => Self::Refused { operation, message },
            Fault::Error(error) => error,
        }
    }
}

pub(crate) fn unavailable(operation: &'static str, host: &str, source: BoxError) -> EngineError {
    EngineError::Unavailable { operation, host: host.to_owned(), source }
}

/// Whether the connection could not be made or ended before the answer did.
fn is_cut_off(error: &Error) -> bool {
    // An answer that ends too early is a daemon that died, not one that speaks another language.
    if let Error::JsonSerdeError { err } = error {
        return err.is_eof();
    }
    matches!(
        error,
        Error::RequestTimeoutError
            | Error::SocketNotFoundError(_)
            | Error::HyperLegacyError { .. }
            | Error::HyperResponseError { .. }
            | Error::IOError { .. }
    )
}

fn is_not_permitted(error: &Error) -> bool {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(current) = next {
        if let Some(io) = current.downcast_ref::<std::io::Error>()
            && io.kind() == ErrorKind::PermissionDenied
        {
            return true;
        }
        // `source` of a transparent error skips the error it wraps.
        if let Some(Error::IOError { err }) = current.downcast_ref::<Error>()
            && err.kind() == ErrorKind::PermissionDenied
        {
            return true;
        }
        next = current.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(error: Error) -> Fault {
        Fault::read("testing", "unix:///x", error)
    }

    fn meaning(error: Error) -> EngineError {
        read(error).into()
    }

    #[test]
    fn an_engine_that_cannot_be_reached_is_unavailable() {
        for error in [
            Error::RequestTimeoutError,
            Error::SocketNotFoundError("/x".into()),
            Error::IOError { err: ErrorKind::ConnectionReset.into() },
            Error::JsonSerdeError { err: serde_json::from_str::<u8>("").unwrap_err() },
            Error::DockerResponseServerError { status_code: 503, message: "starting".into() },
        ] {
            let text = format!("{error:?}");
            let meaning = meaning(error);
            assert!(matches!(meaning, EngineError::Unavailable { .. }), "{text}: {meaning}");
            assert!(meaning.source().is_some());
        }
    }

    #[test]
    fn a_socket_that_may_not_be_used_is_told_from_one_that_does_not_answer() {
        let meaning = meaning(Error::IOError { err: ErrorKind::PermissionDenied.into() });
        assert!(matches!(meaning, EngineError::NotPermitted { .. }), "{meaning}");
        assert!(meaning.to_string().contains("group docker"));
    }

    #[test]
    fn a_status_is_kept_for_the_call_and_is_a_refusal_otherwise() {
        let error = Error::DockerResponseServerError { status_code: NOT_FOUND, message: "no such".into() };
        let fault = read(error);
        assert_eq!(fault.code(), Some(NOT_FOUND));
        let refused = EngineError::from(fault);
        assert_eq!(refused.to_string(), "the engine refused while testing: no such");
    }

    #[test]
    fn an_answer_in_another_language_is_a_bad_reply() {
        for error in [
            Error::JsonDataError { message: "x".into(), column: 1 },
            Error::JsonSerdeError { err: serde_json::from_str::<u8>("<html>").unwrap_err() },
        ] {
            let meaning = meaning(error);
            assert!(matches!(meaning, EngineError::BadReply { .. }), "{meaning}");
        }
    }
}
