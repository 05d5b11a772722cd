//! A line that can be cut, between us and the simulator.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Passes connections on. Each ends after so many bytes from the server, and all end when the whole allowance
/// is used up.
pub struct Proxy {
    pub port: u16,
    allowance: Arc<AtomicU64>,
}

impl Proxy {
    pub fn start(server: u16, each: u64, allowance: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let allowance = Arc::new(AtomicU64::new(allowance));
        let left = allowance.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { return };
                let (up, down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass(up, server, u64::MAX, &AtomicU64::new(u64::MAX)));
                let left = left.clone();
                std::thread::spawn(move || pass(down, client, each, &left));
            }
        });
        Self { port, allowance }
    }

    /// Lets everything pass again.
    pub fn repair(&self) {
        self.allowance.store(u64::MAX, Ordering::Relaxed);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut each: u64, all: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let take = |left: u64| Some(left.saturating_sub(read as u64));
        let before = all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap();
        let length = (read as u64).min(each).min(before);
        each -= length;
        if to.write_all(&buffer[..length as usize]).is_err() || length < read as u64 {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
