//! Holds back the next response until the last one has been dealt with.
//!
//! Beside stage 1. One per stream: a watcher that is slow with news of one control plane does not
//! keep another one waiting. It counts tokens and knows nothing else.

use tokio::sync::watch;

/// Open while nobody holds a token.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    tokens: watch::Sender<()>,
}

/// Keeps a [`Gate`] closed until it is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    _held: watch::Receiver<()>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            tokens: watch::Sender::new(()),
        }
    }
}

impl Gate {
    /// Closes the gate until the token is dropped.
    pub(crate) fn token(&self) -> Token {
        Token {
            _held: self.tokens.subscribe(),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.tokens.receiver_count() == 0
    }

    /// Waits until nobody holds a token.
    pub(crate) async fn opened(&self) {
        self.tokens.closed().await;
    }
}
