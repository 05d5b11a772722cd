//! Whole VMs as XVA archives from `/export`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::power;
use super::records::{self, Vm, number, texts};
use super::session::Session;
use crate::held::PULL;
use crate::{Error, Pullable, Result, State, StreamFile};

/// So long after the last byte may the server take to say how its task ended.
const TASK_TIME: Duration = Duration::from_secs(60);

/// Makes a VM ready to be copied: a running one gets a snapshot.
pub(super) fn pullable(
    session: &Arc<Session>,
    vm: &Vm,
    tell: &mut dyn FnMut(String),
) -> Result<Pullable> {
    let is_still = matches!(vm.state(), State::Stopped | State::Suspended);
    let (uuid, snapshot) = match is_still {
        true => (vm.uuid.clone(), None),
        false => {
            let name = &vm.name;
            let kept = records::snapshots(session, vm)?;
            let reference = match kept.into_iter().find(|one| one.name == PULL) {
                Some(kept) => {
                    tell(format!("{name} has the snapshot {PULL:?} of a pull before; it is used"));
                    kept.id
                }
                None => {
                    tell(format!(
                        "{name} is running: the snapshot {PULL:?} is made for as long as it is copied"
                    ));
                    power::snapshot(session, vm, PULL)?
                }
            };
            let uuid = session.call("VM.get_uuid", &[json!(reference)])?;
            (uuid.as_str().unwrap_or_default().to_owned(), Some(reference))
        }
    };
    let plain = |one: char| if one.is_alphanumeric() || "-_. ".contains(one) { one } else { '_' };
    let name: String = vm.name.chars().map(plain).collect();
    let archive = Archive {
        session: session.clone(),
        uuid,
        name: format!("{}.xva", name.trim_start_matches('.')),
        estimate: size(session, vm)?,
    };
    let session = session.clone();
    let undo = move |_| match snapshot {
        Some(snapshot) => power::destroy(&session, &snapshot),
        None => Ok(()),
    };
    Ok(Pullable {
        files: Vec::new(),
        streams: vec![Box::new(archive)],
        documents: Vec::new(),
        undo: Some(Box::new(undo)),
    })
}

/// What the VM's disks take on the server: about what will come.
fn size(session: &Session, vm: &Vm) -> Result<u64> {
    let mut sum = 0_u64;
    for drive in texts(&vm.record["VBDs"]) {
        let drive = session.call("VBD.get_record", &[json!(drive)])?;
        if drive["type"] == json!("Disk") && drive["empty"] != json!(true) {
            let image = session.call("VDI.get_record", &[drive["VDI"].clone()])?;
            sum = sum.saturating_add(number(&image["physical_utilisation"]).unwrap_or(0));
        }
    }
    Ok(sum)
}

struct Archive {
    session: Arc<Session>,
    uuid: String,
    name: String,
    estimate: u64,
}

impl StreamFile for Archive {
    fn name(&self) -> &str {
        &self.name
    }

    fn estimate(&self) -> u64 {
        self.estimate
    }

    fn read(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let session = &self.session;
        // The stream looks the same whether the server came to its end or gave up: its task tells.
        let arguments = [json!("omnivisor pull"), json!(self.name)];
        let task = session.call("task.create", &arguments)?;
        let result = self.receive(&task, take);
        let ended = result.and_then(|()| self.ended(&task));
        let _ = session.call("task.destroy", &[task]);
        ended
    }

    fn check(&self, path: &Path) -> Result<()> {
        let options = spec::foreign::ReadOptions::default();
        let vms = spec::foreign::read(path, &options)?;
        let drives = vms.iter().flat_map(|vm| &vm.drives);
        for file in drives.filter_map(|drive| drive.file.as_ref()?.disk_path()) {
            let options = disk::ImageOptions { read_only: true, ..disk::ImageOptions::default() };
            // Each block is compared with its checksum when it is read.
            disk::read_all(&*disk::open(file, &options)?, |_| {})?;
        }
        Ok(())
    }
}

impl Archive {
    fn receive(&self, task: &Value, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (session, http) = (&self.session, &self.session.http);
        let what = format!("exporting {}", self.name);
        let address = format!(
            "/export?session_id={}&task_id={}&uuid={}&use_compression=false",
            plain(&session.reference()),
            plain(task.as_str().unwrap_or_default()),
            plain(&self.uuid)
        );
        let (status, reader) = http.stream(&what, &address, None)?;
        let Some(reader) = reader else {
            let message = format!("the server says {status}");
            return Err(Error::Failed { what, message, repair: None });
        };
        http.pass(reader, take)
    }

    /// Waits until the server says that it sent everything.
    fn ended(&self, task: &Value) -> Result<()> {
        let deadline = Instant::now() + TASK_TIME;
        let what = "task.get_record";
        loop {
            let record = self.session.call(what, std::slice::from_ref(task))?;
            match record["status"].as_str() {
                Some("success") => return Ok(()),
                Some("pending") if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Some("pending") => {
                    return Err(Error::TimedOut { what: "the export".into(), limit: TASK_TIME });
                }
                _ => {
                    let about: Vec<_> = texts(&record["error_info"]).take(8).collect();
                    let message = match about.is_empty() {
                        true => "the server gave up".to_owned(),
                        false => about.join(", ").replace(char::is_control, " "),
                    };
                    let what = format!("exporting {}", self.name);
                    return Err(Error::Failed { what, message, repair: None });
                }
            }
        }
    }
}

/// A reference in an address: what is none of its letters is left out.
fn plain(reference: &str) -> String {
    reference.chars().filter(|one| one.is_ascii_alphanumeric() || "-:_".contains(*one)).collect()
}
