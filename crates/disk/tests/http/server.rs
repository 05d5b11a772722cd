//! A server on loopback that can misbehave.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a request had.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub headers: HashMap<String, String>,
}

impl Request {
    /// First and last byte that were asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let range = self.headers.get("range")?.strip_prefix("bytes=")?;
        let (first, last) = range.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// What is answered, and what then happens to the connection.
#[derive(Default)]
pub struct Answer {
    pub head: String,
    pub body: Vec<u8>,
    /// Ends the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Waits before the body.
    pub wait: Duration,
}

impl Answer {
    pub fn status(status: &str, headers: &str) -> Self {
        Self {
            head: format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n{headers}\r\n"),
            ..Self::default()
        }
    }

    /// What a good server sends.
    pub fn part(request: &Request, file: &[u8], headers: &str) -> Self {
        let Some((first, last)) = request.range() else {
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{headers}\r\n", file.len());
            return Self { head, body: file.to_vec(), ..Self::default() };
        };
        if first >= file.len() {
            let range = format!("Content-Range: bytes */{}\r\n{headers}", file.len());
            return Self::status("416 Range Not Satisfiable", &range);
        }
        let last = last.min(file.len() - 1);
        let body = file[first..=last].to_vec();
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\n\
             Content-Range: bytes {first}-{last}/{}\r\n{headers}\r\n",
            body.len(),
            file.len()
        );
        Self { head, body, ..Self::default() }
    }
}

/// A server that ends when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    ended: Arc<AtomicBool>,
    /// All requests, in their order.
    pub requests: Arc<Mutex<Vec<Request>>>,
    scheme: &'static str,
}

impl Server {
    /// Answers each request, which is told its number.
    pub fn new(answer: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Self {
        Self::start(answer, None)
    }

    /// The same over TLS.
    pub fn with_tls(
        config: rustls::ServerConfig,
        answer: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start(answer, Some(Arc::new(config)))
    }

    /// Serves files by their paths.
    pub fn of(files: Vec<(&'static str, Vec<u8>)>) -> Self {
        Self::new(move |request, _| {
            let found = files.iter().find(|(path, _)| *path == request.path);
            match found {
                Some((_, file)) => Answer::part(request, file, "ETag: \"1\"\r\n"),
                None => Answer::status("404 Not Found", ""),
            }
        })
    }

    fn start(
        answer: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(answer);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (stop, log) = (ended.clone(), requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (answer, log, tls) = (answer.clone(), log.clone(), tls.clone());
                std::thread::spawn(move || {
                    let _ = match tls {
                        None => serve(stream.try_clone().unwrap(), stream, &*answer, &log),
                        Some(config) => {
                            let connection = rustls::ServerConnection::new(config).unwrap();
                            let stream = rustls::StreamOwned::new(connection, stream);
                            let shared = Shared(Arc::new(Mutex::new(stream)));
                            serve(shared.clone(), shared, &*answer, &log)
                        }
                    };
                });
            }
        });
        Self { address, ended, requests, scheme }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    pub fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

/// Both directions of a TLS connection.
#[derive(Clone)]
struct Shared(Arc<Mutex<rustls::StreamOwned<rustls::ServerConnection, TcpStream>>>);

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().read(buffer)
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.lock().unwrap().flush()
    }
}

fn serve(
    from: impl Read,
    mut to: impl Write,
    answer: &(dyn Fn(&Request, usize) -> Answer + Send + Sync),
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(from);
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            lines.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let request = Request { path, headers };
        let number = {
            let mut log = log.lock().unwrap();
            log.push(request.clone());
            log.len() - 1
        };
        let answer = answer(&request, number);
        to.write_all(answer.head.as_bytes())?;
        to.flush()?;
        std::thread::sleep(answer.wait);
        to.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())])?;
        to.flush()?;
        if answer.cut.is_some() {
            return Ok(());
        }
    }
}
