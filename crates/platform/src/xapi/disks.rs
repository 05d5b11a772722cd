//! Disks in parts, by NBD: those of a snapshot, which nobody writes to.
//!
//! Source: "XenServer Changed Block Tracking", chapter "Export changed blocks over a network block device connection".

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use disk::{Disk, Format, ImageOptions, ReadAhead, RemoteSource, Source};
use serde_json::{Value, json};
use spec::foreign::{Description, DriveKind};

use super::nbd::{Connection, Export};
use super::records::{self, Vm, number, texts};
use super::session::Session;
use super::{description, power};
use crate::held::RUN;
use crate::{Error, Result, Secret, State, Still, StillDisk, blocks};

/// What is asked for at once.
const PIECE: u64 = 1 << 20;
/// Connections that are kept for the next reader.
const MOST_IDLE: usize = 8;

/// Makes a snapshot of a VM, or takes the one of a run before, and opens its disks.
pub(super) fn still(
    session: &Arc<Session>,
    vm: &Vm,
    label: &str,
    tell: &mut dyn FnMut(String),
) -> Result<Still> {
    let description = description::describe(session, vm, label)?;
    // Before anything is changed: whether disks are given at all.
    for drive in drives(session, &vm.record)? {
        export(session, &drive.image, label)?;
    }
    let (snapshot, is_new) = hold(session, vm, tell)?;
    let undo = {
        let (session, snapshot) = (session.clone(), snapshot.clone());
        move |is_complete| match is_complete {
            true => power::destroy(&session, &snapshot),
            false => Ok(()),
        }
    };
    match open(session, &description, &snapshot, label) {
        Ok(disks) => Ok(Still { description, disks, files: Vec::new(), undo: Box::new(undo) }),
        Err(error) => {
            let _ = undo(is_new);
            Err(error)
        }
    }
}

/// The snapshot, and whether it was made now.
fn hold(session: &Session, vm: &Vm, tell: &mut dyn FnMut(String)) -> Result<(String, bool)> {
    let name = &vm.name;
    let kept = records::snapshots(session, vm)?;
    if let Some(kept) = kept.into_iter().find(|one| one.name == RUN) {
        tell(format!("{name} has the snapshot {RUN:?} of a run before; it is used"));
        return Ok((kept.id, false));
    }
    if vm.state() == State::Suspended {
        tell(format!("{name} is suspended: what its memory holds is not taken along"));
    }
    tell(format!("the snapshot {RUN:?} of {name} is made, until all of its disks are here"));
    Ok((power::snapshot(session, vm, RUN)?, true))
}

fn open(
    session: &Arc<Session>,
    description: &Description,
    snapshot: &str,
    label: &str,
) -> Result<Vec<StillDisk>> {
    let record = session.call("VM.get_record", &[json!(snapshot)])?;
    let mut opened = Vec::new();
    for found in drives(session, &record)? {
        let mut places = description.drives.iter();
        let drive = places
            .position(|drive| drive.kind == DriveKind::Disk && u64::from(drive.unit) == found.unit);
        let Some(drive) = drive else { continue };
        let uuid = session.call("VDI.get_uuid", &[json!(found.image)])?;
        let uuid = uuid.as_str().unwrap_or_default().to_owned();
        opened.push(StillDisk {
            drive,
            stamp: uuid.clone(),
            disk: open_image(session, found.image, uuid, label)?,
        });
    }
    Ok(opened)
}

fn open_image(
    session: &Arc<Session>,
    reference: String,
    uuid: String,
    label: &str,
) -> Result<Arc<dyn Disk>> {
    let first = Connection::open(&export(session, &reference, label)?, session.http.limit)?;
    let image = Image {
        session: session.clone(),
        reference,
        uuid,
        label: label.to_owned(),
        length: first.length(),
        idle: Mutex::new(vec![first]),
        ahead: ReadAhead::default(),
    };
    let format = Some(Format::Raw);
    let options = ImageOptions { read_only: true, format, ..ImageOptions::default() };
    Ok(disk::open_remote(Arc::new(image), &[], &options)?.0)
}

/// A drive with a disk in it.
struct Drive {
    unit: u64,
    /// The reference of its VDI.
    image: String,
}

/// The disks of a VM or a snapshot, by its record.
fn drives(session: &Session, record: &Value) -> Result<Vec<Drive>> {
    let mut found = Vec::new();
    for reference in texts(&record["VBDs"]).take(description::MOST) {
        let drive = session.call("VBD.get_record", &[json!(reference)])?;
        if drive["type"] == json!("Disk") && drive["empty"] != json!(true) {
            let unit = number(&drive["userdevice"]).unwrap_or(0);
            let image = drive["VDI"].as_str().unwrap_or_default().to_owned();
            found.push(Drive { unit, image });
        }
    }
    Ok(found)
}

/// How a disk is had at the moment: the name of an export is good for one session.
fn export(session: &Session, image: &str, label: &str) -> Result<Export> {
    const METHOD: &str = "VDI.get_nbd_info";
    let offers = session.call(METHOD, &[json!(image)])?;
    let Some(offer) = offers.as_array().and_then(|offers| offers.first()) else {
        return Err(Error::Failed {
            what: format!("reading disks of {label}"),
            message: "no network of the pool has the purpose \"nbd\"".into(),
            repair: Some(format!(
                "on the pool's master: xe network-param-add param-name=purpose param-key=nbd uuid=NETWORK; \
                 or copy it first: omnivisor pull '{label}'"
            )),
        });
    };
    let text = |key: &str| offer[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let read = || {
        Some(Export {
            address: text("address")?,
            port: u16::try_from(number(&offer["port"])?).ok()?,
            name: Secret::new(text("exportname")?),
            certificate: text("cert")?,
        })
    };
    read().ok_or_else(|| session.wrong(METHOD, "it names no server"))
}

/// A disk of a snapshot.
struct Image {
    session: Arc<Session>,
    reference: String,
    uuid: String,
    label: String,
    length: u64,
    idle: Mutex<Vec<Connection>>,
    ahead: ReadAhead,
}

impl Image {
    /// Hands out the bytes of `range`.
    fn read(&self, range: Range<u64>, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let waiting = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = match waiting {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let mut buffer = vec![0; PIECE.min(range.end - range.start) as usize];
        let mut at = range.start;
        while at < range.end {
            let count = PIECE.min(range.end - at);
            let piece = &mut buffer[..count as usize];
            connection.read(at, piece)?;
            take(piece)?;
            at += count;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE {
            idle.push(connection);
        }
        Ok(())
    }

    fn connect(&self) -> Result<Connection> {
        let export = export(&self.session, &self.reference, &self.label)?;
        let connection = Connection::open(&export, self.session.http.limit)?;
        match connection.length() == self.length {
            true => Ok(connection),
            false => Err(self.session.wrong("VDI.get_nbd_info", "the disk has another length now")),
        }
    }
}

impl Source for Image {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> disk::Result<()> {
        let read = |range: Range<u64>, take: blocks::Take<'_>| self.read(range, take);
        blocks::read_at(self, &self.ahead, buffer, offset, &read)
    }

    fn version(&self) -> Option<String> {
        Some(self.uuid.clone())
    }
}

impl RemoteSource for Image {
    fn address(&self) -> String {
        format!("{} of {}", self.uuid, self.session.http.place)
    }

    fn state(&self) -> Option<String> {
        Some(self.uuid.clone())
    }

    /// The server resolves chains itself.
    fn sibling(&self, name: &str) -> disk::Result<Arc<dyn RemoteSource>> {
        Err(disk::Error::NotFound { name: name.to_owned() })
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("uuid", &self.uuid).finish_non_exhaustive()
    }
}
