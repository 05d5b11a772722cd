//! The steps of an import.

use std::path::Path;
use std::time::Duration;

use disk::{ConvertOptions, CreateOptions, Format};
use engine::Engine;
use machine::Outcome;
use machine::disks::{State, open_disks};
use spec::{Size, VmSpec};

use super::adapt::{self, Changes};
use super::verify::{Sign, sign};
use super::{Original, with_console, words};
use crate::convert::RESUME;
use crate::disk::{Progress, failed, human};
use crate::failure::{FAILED, Failure, NOT_STARTED};
use crate::run::scratch::Scratch;
use crate::run::unattended::watch;
use crate::run::{guest, room};

/// So many of the console's last lines are shown.
const LINES: usize = 15;

/// Makes an image of an original disk.
pub fn convert(original: &Original, target: &Path, to: &CreateOptions) -> Result<(), Failure> {
    let progress = Progress::new(original.disk.len());
    let options = ConvertOptions {
        image: to.clone(),
        // Nothing that is there under this name is finished, or the journal would say so.
        replace: true,
        resume: Some(RESUME),
        ..ConvertOptions::new(to.format)
    };
    let report = disk::convert(&*original.disk, target, &options, |done| progress.show(done))
        .map_err(|error| failed(error).help("the same command goes on with what is done"))?;
    drop(progress);
    if report.resumed != 0 {
        let done = human(report.resumed);
        tell!("{}: went on behind the {done} that were done.", original.name);
    }
    tell!("{}: {} written.", original.name, human(report.data));
    Ok(())
}

/// Makes an overlay over an original disk.
pub fn link(original: &Original, target: &Path) -> Result<(), Failure> {
    let Some(top) = original.chain.first() else {
        return Err(Failure::new(FAILED, "The disk has no image"));
    };
    let path = std::path::absolute(&top.path).unwrap_or_else(|_| top.path.clone());
    let name = path.to_str().ok_or_else(|| {
        Failure::new(FAILED, "The name of a parent must be UTF-8, as the image has to hold it")
    })?;
    let mut options = CreateOptions::new(Format::Qcow2, original.disk.len());
    options.backing = Some((name.to_owned(), top.format));
    match std::fs::remove_file(target) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::new(
                FAILED,
                format!("Cannot replace {}: {error}", target.display()),
            ));
        }
        _ => {}
    }
    disk::create(target, &options).map_err(failed)
}

/// Has the guest change itself: its kernel starts our script, which lies on a disk, instead of its init.
pub fn change(
    engine: &dyn Engine,
    spec: &VmSpec,
    changes: &Changes,
    limit: Duration,
) -> Result<(), Failure> {
    let folder = Scratch::new().map_err(|error| Failure::from_error(FAILED, error))?;
    let script = folder.path().join("script");
    std::fs::write(&script, changes.script()).map_err(|error| {
        Failure::new(FAILED, format!("Cannot write {}: {error}", script.display()))
    })?;
    let mut spec = alone(spec);
    let count = spec.disks.len();
    let letter =
        u8::try_from(count).ok().filter(|count| *count < 26).map(|count| char::from(b'a' + count));
    let Some(letter) = letter else {
        return Err(Failure::new(FAILED, "A VM of more than 25 disks cannot be changed"));
    };
    spec.disks.push(spec::Disk {
        path: script,
        format: Some("raw".into()),
        readonly: true,
        ..spec::Disk::default()
    });
    let state = State { folder: folder.path().join("state"), vm: "import".into(), cache: None };
    let disks =
        open_disks(&spec.disks, &state).map_err(|error| Failure::from_error(NOT_STARTED, error))?;
    let words = format!("{} quiet panic=-1 init=/bin/sh -- /dev/vd{letter}", words());
    // The script's disk is not the guest's.
    let prepared = guest::prepare(&spec, &disks[..count], None, "ttyS0", &words)?;
    tell!("The guest changes itself.");
    // It switches itself off.
    let watched = watch(engine, &spec, &disks, prepared.boot, limit, |_| None::<()>)?;
    for line in watched.console.lines().filter_map(|line| line.trim().strip_prefix(adapt::SAYS)) {
        tell!("  {}", line.replace(char::is_control, ""));
    }
    let failures = watched
        .console
        .rsplit_once(adapt::FINISHED)
        .and_then(|(_, rest)| rest.split(['\r', '\n']).next()?.trim().parse::<u32>().ok());
    let lines = watched.last_lines(LINES);
    match failures {
        Some(0) if matches!(watched.outcome, Outcome::PowerOff | Outcome::Stopped) => Ok(()),
        Some(0) => {
            Err(with_console("The guest was changed, but did not switch itself off", &lines))
        }
        Some(count) => Err(with_console(&format!("{count} of the guest's changes failed"), &lines)),
        None if watched.timed_out => {
            Err(with_console("The guest did not finish its changes in time", &lines))
        }
        None => Err(with_console("The guest ended before it was through with its changes", &lines)),
    }
}

/// Boots the guest until it is up, without keeping what it writes; how that was seen, and how long it took.
pub fn verify(
    engine: &dyn Engine,
    spec: &VmSpec,
    limit: Duration,
) -> Result<(&'static str, Duration), Failure> {
    let folder = Scratch::new().map_err(|error| Failure::from_error(FAILED, error))?;
    let mut spec = alone(spec);
    for disk in spec.disks.iter_mut().filter(|disk| !disk.readonly) {
        (disk.in_place, disk.discard) = (false, true);
    }
    let state = State { folder: folder.path().join("state"), vm: "import".into(), cache: None };
    let disks =
        open_disks(&spec.disks, &state).map_err(|error| Failure::from_error(NOT_STARTED, error))?;
    let prepared = guest::prepare(&spec, &disks, None, "ttyS0", words())?;
    tell!("The guest is started: {}.", prepared.title.replace(char::is_control, " "));
    let watched = watch(engine, &spec, &disks, prepared.boot, limit, sign)?;
    let lines = watched.last_lines(LINES);
    match watched.decision {
        Some(Sign::Login) => Ok(("it asks for a login", watched.took)),
        Some(Sign::Target) => Ok(("systemd reached its last target", watched.took)),
        Some(Sign::Passphrase) => Ok((
            "it asks for the passphrase of an encrypted disk, beyond which it was not seen,",
            watched.took,
        )),
        Some(Sign::Failed(words)) => {
            Err(with_console(&format!("The guest does not boot: it says {words:?}"), &lines))
        }
        None if watched.timed_out => Err(with_console("The guest was not up in time", &lines)),
        None => Err(with_console("The guest ended before it was up", &lines)),
    }
}

/// The VM without what reaches out of it, and with no more memory than there is here.
fn alone(spec: &VmSpec) -> VmSpec {
    let mut alone =
        VmSpec { nics: Some(Vec::new()), vsock: None, shares: Vec::new(), ..spec.clone() };
    // Memory comes in pages.
    let limit = Size(room::there() & !0xfff);
    alone.memory.size = alone.memory.size.map(|size| size.min(limit));
    alone
}
