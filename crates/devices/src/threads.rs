//! Threads of devices, which inherit nothing from the one that asks for them.
//!
//! A driver activates a device by a write to a register, which the processor's own thread serves. That may be
//! confined (seccomp(2)), and its children would be as well, though they are to open files. So a thread that was
//! started before starts them.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

/// Enough for a thread that only starts others.
const STACK_SIZE: usize = 64 << 10;

struct Request {
    builder: Builder,
    work: Box<dyn FnOnce() + Send>,
    reply: Sender<io::Result<JoinHandle<()>>>,
}

static STARTER: Mutex<Option<Sender<Request>>> = Mutex::new(None);

/// Starts the thread that starts others; to be called before any thread is confined.
///
/// # Errors
///
/// The host has no thread to give.
pub fn prepare() -> io::Result<()> {
    starter().map(drop)
}

/// Has `work` done by the thread that `builder` describes.
pub(crate) fn spawn(
    builder: Builder,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (reply, answer) = channel();
    let ended = |_| io::Error::other("the thread that starts others has ended");
    let request = Request { builder, work: Box::new(work), reply };
    starter()?.send(request).map_err(|_| ended(()))?;
    answer.recv().map_err(|_| ended(()))?
}

fn starter() -> io::Result<Sender<Request>> {
    let mut starter = STARTER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(starter) = &*starter {
        return Ok(starter.clone());
    }
    let (sender, requests) = channel::<Request>();
    Builder::new().name("starter".into()).stack_size(STACK_SIZE).spawn(move || {
        for Request { builder, work, reply } in requests {
            // Nobody waits for the answer any more only if the asking thread has panicked.
            let _ = reply.send(builder.spawn(work));
        }
    })?;
    Ok(starter.insert(sender).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_not_the_child_of_the_one_that_asks() {
        prepare().unwrap();
        // A name is inherited where none is given, like a filter.
        let asking = Builder::new().name("asking".into()).spawn(|| {
            let (sender, name) = channel();
            let thread = spawn(Builder::new(), move || {
                let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
                sender.send(name).unwrap();
            });
            thread.unwrap().join().unwrap();
            name.recv().unwrap()
        });
        assert_eq!(asking.unwrap().join().unwrap(), "starter\n");
    }
}
