//! The other end of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::protocol::{Reply, Request};

/// Bytes of a reply that are believed: a status is a few KiB.
const REPLY_BYTES_MAX: u64 = 1 << 20;

/// Why a running volume did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("it does not answer: {0}")]
    Connect(#[source] io::Error),
    #[error("it went away before it had answered; its log may say why")]
    Gone,
    #[error("{0}")]
    Refused(String),
    #[error("it answered what is not an answer: {0}")]
    Garbled(String),
}

/// A connection to a volume's daemon.
#[derive(Debug)]
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// When nobody listens there, or this user may not ask.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        UnixStream::connect(path).map(|stream| Self(BufReader::new(stream))).map_err(ClientError::Connect)
    }

    /// Waits for an answer no longer than this, or for ever; then the daemon counts as gone.
    ///
    /// # Errors
    /// When the socket takes no timeout.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.0.get_ref().set_read_timeout(patience)
    }

    /// Asks, and waits for the answer however long it takes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn ask(&mut self, request: &Request) -> Result<Value, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(|error| ClientError::Garbled(error.to_string()))?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line).map_err(|_| ClientError::Gone)?;
        let mut reply = Vec::new();
        let read = self.0.by_ref().take(REPLY_BYTES_MAX).read_until(b'\n', &mut reply);
        match read {
            Ok(0) | Err(_) => Err(ClientError::Gone),
            Ok(_) => match serde_json::from_slice(&reply) {
                Ok(Reply::Ok(value)) => Ok(value),
                Ok(Reply::Error(error)) => Err(ClientError::Refused(error)),
                Err(error) => Err(ClientError::Garbled(error.to_string())),
            },
        }
    }
}
