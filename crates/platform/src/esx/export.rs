//! Disks by an export lease (`HttpNfcLease`), for datastores that give no files: vSAN, virtual volumes.
//!
//! Source: vSphere Web Services API, "HttpNfcLease". The server makes streamOptimized disks as they are fetched.

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha1::{Digest, Sha1};

use super::description;
use super::files::renamed;
use super::inventory::{self, Object};
use super::session::Session;
use super::soap::{self, Element, Reference};
use crate::pull::hexadecimal;
use crate::{Error, Pullable, Result, State, StreamFile};

/// So long may the server take to prepare a lease.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Between two looks at a lease.
const LOOK: Duration = Duration::from_millis(200);
/// The server is told at least this often that somebody still reads.
const SLOWEST_PROGRESS: Duration = Duration::from_secs(60);
/// Bytes that are hashed at once.
const BUFFER: usize = 1 << 20;

/// Makes a VM that is powered off ready to be copied by a lease.
pub(super) fn pullable(session: &Arc<Session>, vm: &Object) -> Result<Pullable> {
    let summary = vm.summary();
    if !matches!(summary.state, State::Stopped | State::Suspended) {
        return Err(Error::WrongState {
            name: summary.name,
            state: summary.state,
            repair: Some("disks of its datastore are given only when it is powered off".into()),
        });
    }
    let config = vm.property("config");
    let config = config.ok_or_else(|| session.wrong("RetrievePropertiesEx", "it has no config"))?;
    let disks = description::disks(config);
    let lease = Arc::new(Lease::open(session, &vm.reference)?);
    let devices = lease.devices()?;
    if devices.len() != disks.len() {
        let message = format!("it gives {} of {} disks", devices.len(), disks.len());
        lease.end(false)?;
        return Err(session.wrong("ExportVm", message));
    }
    let mut streams: Vec<Box<dyn StreamFile>> = Vec::new();
    let mut drives = Vec::new();
    for (index, (device, disk)) in devices.into_iter().zip(&disks).enumerate() {
        // Two disks may have one name in two folders.
        let name = format!("disk-{index}.vmdk");
        let key = format!("{}{}:{}", disk.bus.name(), disk.controller, disk.unit);
        drives.push((format!("{key}.filename"), name.clone()));
        streams.push(Box::new(Exported { lease: lease.clone(), device, name }));
    }
    let vmx = renamed(description::vmx(config).as_bytes(), &drives);
    let documents = vec![(format!("{}.vmx", summary.name.replace('/', "_")), vmx)];
    let undo = move |is_complete| lease.end(is_complete);
    Ok(Pullable { files: Vec::new(), streams, documents, undo: Some(Box::new(undo)) })
}

/// A disk of a lease.
struct Device {
    key: String,
    /// Its path and query at the server.
    address: String,
    /// About how many bytes it has.
    size: u64,
}

/// A lease that is kept alive.
struct Lease {
    session: Arc<Session>,
    reference: Reference,
    info: Element,
    keeper: Mutex<Option<Keeper>>,
}

impl Lease {
    fn open(session: &Arc<Session>, vm: &Reference) -> Result<Self> {
        let reply = session.call("ExportVm", vm, "")?;
        let reference = reply.child("returnval").and_then(Element::reference);
        let reference = reference.ok_or_else(|| session.wrong("ExportVm", "it names no lease"))?;
        let deadline = Instant::now() + LONGEST_WAIT;
        loop {
            let found = inventory::get(session, &reference, &["state", "info", "error"])?;
            match found.value("state") {
                Some("ready") => {
                    let info = found.property("info").cloned();
                    let info =
                        info.ok_or_else(|| session.wrong("ExportVm", "a lease of nothing"))?;
                    let time = info.number::<u64>("leaseTimeout").unwrap_or(300);
                    let pause = Duration::from_secs(time) / 3;
                    let keeper = Keeper::start(session, &reference, pause.min(SLOWEST_PROGRESS));
                    let (session, keeper) = (session.clone(), Mutex::new(Some(keeper)));
                    return Ok(Self { session, reference, info, keeper });
                }
                Some("initializing") if Instant::now() < deadline => std::thread::sleep(LOOK),
                Some("initializing") => {
                    return Err(Error::TimedOut { what: "ExportVm".into(), limit: LONGEST_WAIT });
                }
                _ => {
                    let error =
                        found.property("error").and_then(|error| error.value("localizedMessage"));
                    return Err(Error::Failed {
                        what: format!("ExportVm at {}", session.http.place),
                        message: error.unwrap_or("the lease ended").to_owned(),
                        repair: None,
                    });
                }
            }
        }
    }

    fn devices(&self) -> Result<Vec<Device>> {
        let http = &self.session.http;
        let is_disk = |device: &&Element| device.value("disk") != Some("false");
        let device = |device: &Element| {
            let wrong = |message: &str| self.session.wrong("ExportVm", message);
            let url = device.value("url").ok_or_else(|| wrong("a disk without address"))?;
            let rest =
                url.strip_prefix("https://").ok_or_else(|| wrong("an address without TLS"))?;
            let (host, path) =
                rest.split_once('/').ok_or_else(|| wrong("an address without path"))?;
            // A vCenter sends to the host, of which no certificate is known here.
            if host != "*" && host.split(':').next() != http.place.split(':').next() {
                return Err(Error::Unreachable {
                    place: http.place.clone(),
                    message: format!(
                        "it sends for disks to {}",
                        host.replace(char::is_control, " ")
                    ),
                    repair: Some("name that host: esx://root@HOST/VM".into()),
                });
            }
            Ok(Device {
                key: device.value("key").unwrap_or_default().to_owned(),
                address: format!("/{path}"),
                size: device.number("fileSize").unwrap_or(0),
            })
        };
        self.info.children("deviceUrl").filter(is_disk).map(device).collect()
    }

    /// Gives it back: everything was read, or not.
    fn end(&self, is_complete: bool) -> Result<()> {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if keeper.is_none() {
            return Ok(());
        }
        drop(keeper);
        let method = if is_complete { "HttpNfcLeaseComplete" } else { "HttpNfcLeaseAbort" };
        self.session.call(method, &self.reference, "").map(drop)
    }

    /// The SHA-1 of what the server sent for a disk; nothing if it keeps none.
    fn sha1(&self, key: &str) -> Result<Option<String>> {
        let (session, method) = (&self.session, "HttpNfcLeaseGetManifest");
        let Ok(reply) = session.try_call(method, &self.reference, "", session.http.limit)? else {
            return Ok(None);
        };
        let entry = reply.children("returnval").find(|entry| entry.value("key") == Some(key));
        let sum = entry.and_then(|entry| entry.value("sha1")).map(str::to_ascii_lowercase);
        Ok(sum.filter(|sum| sum.len() == 40))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The server ends it by itself, later.
        let _ = self.end(false);
    }
}

/// Tells the server again and again that somebody reads.
struct Keeper {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    fn start(session: &Arc<Session>, lease: &Reference, pause: Duration) -> Self {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (session, lease, stopped) = (session.clone(), lease.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let (flag, changed) = &*stopped;
            loop {
                let is_over = flag.lock().unwrap_or_else(PoisonError::into_inner);
                let waited = changed.wait_timeout_while(is_over, pause, |is_over| !*is_over);
                if *waited.unwrap_or_else(PoisonError::into_inner).0 {
                    return;
                }
                let percent = soap::text("percent", "50");
                if let Err(error) = session.call("HttpNfcLeaseProgress", &lease, &percent) {
                    tracing::info!(%error, "the lease may end");
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let (flag, changed) = &*self.stop;
        *flag.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // One that panicked has nothing to say.
            let _ = thread.join();
        }
    }
}

/// A disk that the server makes while it is read.
struct Exported {
    lease: Arc<Lease>,
    device: Device,
    name: String,
}

impl StreamFile for Exported {
    fn name(&self) -> &str {
        &self.name
    }

    fn estimate(&self) -> u64 {
        self.device.size
    }

    fn read(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let http = &self.lease.session.http;
        let what = format!("exporting {}", self.name);
        let reader = self.lease.session.with_cookie(|cookie| {
            match http.stream(&what, &self.device.address, cookie)? {
                (_, Some(reader)) => Ok(Some(reader)),
                (ureq::http::StatusCode::UNAUTHORIZED, None) => Ok(None),
                (status, None) => {
                    let message = format!("the server says {status}");
                    Err(Error::Failed { what: what.clone(), message, repair: None })
                }
            }
        })?;
        http.pass(reader, take)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let failed = |source| Error::File { path: path.into(), source };
        if let Some(expected) = self.lease.sha1(&self.device.key)? {
            let mut file = std::fs::File::open(path).map_err(failed)?;
            let mut digest = Sha1::new();
            let mut buffer = vec![0; BUFFER];
            loop {
                match file.read(&mut buffer).map_err(failed)? {
                    0 => break,
                    read => digest.update(&buffer[..read]),
                }
            }
            if hexadecimal(&digest.finalize()) != expected {
                return Err(Error::reply(
                    &self.name,
                    "it is not what the server says that it sent",
                ));
            }
        }
        // Its grains have checksums, and its end tells that it is whole.
        let format = Some(disk::Format::Vmdk);
        let options = disk::ImageOptions { read_only: true, format, ..Default::default() };
        disk::read_all(&*disk::open(path, &options)?, |_| {})?;
        Ok(())
    }
}
