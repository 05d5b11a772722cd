//! Interrupt vectors that remember what they are told, for tests.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use engine::MsiMessage;

use crate::{Interrupt, MsiController, MsiVector, Result};

/// Remembers what it is told.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) signals: AtomicUsize,
    pub(crate) message: Mutex<Option<MsiMessage>>,
}

impl Interrupt for Recorder {
    fn signal(&self) {
        self.signals.fetch_add(1, Ordering::SeqCst);
    }
}

impl MsiVector for Recorder {
    fn configure(&self, message: Option<MsiMessage>) {
        *self.message.lock().unwrap() = message;
    }
}

/// Hands out recorders and keeps them.
#[derive(Default)]
pub(crate) struct Recorders(pub(crate) Mutex<Vec<Arc<Recorder>>>);

impl Recorders {
    /// How often the vector handed out as number `index` was raised.
    pub(crate) fn signals(&self, index: usize) -> usize {
        self.0.lock().unwrap()[index].signals.load(Ordering::SeqCst)
    }
}

impl MsiController for Recorders {
    fn vector(&self) -> Result<Arc<dyn MsiVector>> {
        let recorder = Arc::new(Recorder::default());
        self.0.lock().unwrap().push(Arc::clone(&recorder));
        Ok(recorder)
    }
}
