//! The disks of a run, and a line on where the guest's writes go.

use machine::disks::{self, Error, OpenDisk, State, Writes};
use spec::VmSpec;

use crate::disk::{COPY_AGAIN, cache_folder, root};
use crate::failure::{Failure, NOT_STARTED, USAGE};
use crate::run::state;

/// Name of the machine that has none, for its state.
const UNNAMED: &str = "vm";

/// Opens the disks that `spec` names.
pub fn open(spec: &VmSpec) -> Result<Vec<OpenDisk>, Failure> {
    if spec.disks.is_empty() {
        return Ok(Vec::new());
    }
    let vm = spec.name.clone().unwrap_or_else(|| UNNAMED.to_owned());
    let state = State { folder: state::folder()?, vm, cache: cache_folder() };
    let disks = disks::open_disks(&spec.disks, &state).map_err(explain)?;
    disks.iter().for_each(tell);
    Ok(disks)
}

fn tell(disk: &OpenDisk) {
    let image = disk.spec.path.display();
    match &disk.writes {
        Writes::Overlay { path, is_new: true } => {
            tell!("Writes to {image} go to {}; the next run goes on with it.", path.display());
        }
        Writes::Overlay { path, is_new: false } => {
            tell!("Going on with {}, which holds the writes to {image}.", path.display());
        }
        Writes::Discarded { kept: Some(path) } => tell!(
            "This run does not see what earlier ones wrote to {image}. It stays in {}; remove that file to start anew.",
            path.display()
        ),
        Writes::Discarded { kept: None } | Writes::InPlace | Writes::Nowhere => {}
    }
}

/// Adds the repair to errors that have one.
fn explain(error: Error) -> Failure {
    let code = match &error {
        Error::Format(_) | Error::Name(_) => USAGE,
        _ => NOT_STARTED,
    };
    let help = match &error {
        Error::NotInPlace { .. } => {
            Some("leave out ,in-place, so that an overlay takes the writes".to_owned())
        }
        Error::BaseChanged { overlay, .. } => Some(format!(
            "put the image back as it was, or remove {} to start again without what the guest wrote",
            overlay.display()
        )),
        Error::Disk(error) => match root(error) {
            disk::Error::OutsideFolder { .. } => {
                Some("if you trust the image, say ,outside after its name".to_owned())
            }
            disk::Error::InUse { .. } => Some(
                "for a second machine with the same disk, give it another --name, or say ,discard"
                    .to_owned(),
            ),
            disk::Error::CutShort { .. } => Some(COPY_AGAIN.to_owned()),
            _ => None,
        },
        _ => None,
    };
    let failure = Failure::from_error(code, error);
    match help {
        Some(help) => failure.help(help),
        None => failure,
    }
}
