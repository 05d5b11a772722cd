//! VirtualBox's VMs by its program `VBoxManage` and its `.vbox` files.
//!
//! Source: VirtualBox User Manual, chapter "VBoxManage".

mod parse;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use spec::foreign::{Description, ReadOptions};

use crate::files::{HasVmDisks, Place, VmDisks};
use crate::registry::{Driver, Met};
use crate::{
    Ability, Action, ConsoleLog, Error, Options, Output, Platform, Pull, RemoteDisks, Result,
    Runner, Snapshot, State, Uri, Verb, VmDetails, VmSummary, describe,
};

use parse::Info;
pub use parse::fuzz;

/// How it is reached.
pub const DRIVER: Driver = Driver {
    platform: "VirtualBox",
    schemes: &["vbox", "vbox+ssh"],
    is_local: true,
    path_parts: 0,
    met: Met::Product(
        "VirtualBox 7.2, whose VMs were not started there; of running ones, recorded output",
    ),
    ability,
    connect,
};

fn ability(verb: Verb) -> Ability {
    match verb {
        Verb::ConsoleLog => Ability::partly("if a serial port of the VM writes to a file"),
        Verb::ReadDisks => Ability::partly("the VM is switched off to be copied or run"),
        Verb::Watch => Ability::partly("by asking again and again"),
        Verb::Reset => Ability::partly("without --force only with Guest Additions in the guest"),
        _ => Ability::Yes,
    }
}

fn connect(uri: &Uri, options: &Options) -> Result<Box<dyn Platform>> {
    let runner = Runner::new(uri, options.time_limit)
        .repair("install VirtualBox, or add its folder to PATH");
    let place = Place::of(&runner, options.time_limit);
    Ok(Box::new(VirtualBox { runner, place, uri: uri.clone() }))
}

struct VirtualBox {
    place: Arc<Place>,
    runner: Runner,
    uri: Uri,
}

/// The program.
const PROGRAM: &str = "VBoxManage";
/// The device that its module makes on Linux.
const MODULE: &str = "/dev/vboxdrv";
/// So many VMs are asked about at a time.
const AT_ONCE: usize = 4;
/// Snapshots write memory to disk, and merge disks.
const SNAPSHOT_TIME: Duration = Duration::from_secs(3600);

impl VirtualBox {
    fn expect(&self, runner: &Runner, vm: &str, args: &[&str]) -> Result<Output> {
        let output = runner.run(PROGRAM, args)?;
        if output.code == 0 { Ok(output) } else { Err(self.failure(vm, args, &output)) }
    }

    fn failure(&self, vm: &str, args: &[&str], output: &Output) -> Error {
        let place = self.uri.to_string();
        if output.stderr.contains("Could not find a registered machine") {
            return Error::NotFound { place, what: "VM", name: vm.into() };
        }
        if output.stderr.contains("Could not find a snapshot") {
            let name = args.last().copied().unwrap_or_default().into();
            return Error::NotFound { place, what: "snapshot", name };
        }
        let said: Vec<_> = output
            .stderr
            .lines()
            .filter_map(|line| line.strip_prefix("VBoxManage: error: "))
            .filter(|line| !line.starts_with("Details:") && !line.starts_with("Context:"))
            .collect();
        let message = match said.is_empty() {
            true => output.complaint(),
            false => said.join("; ").replace(char::is_control, " "),
        };
        let command = args.first().copied().unwrap_or_default();
        Error::Failed { what: format!("{PROGRAM} {command}"), message, repair: None }
    }

    fn info(&self, vm: &str) -> Result<Info> {
        let output = self.expect(&self.runner, vm, &["showvminfo", vm, "--machinereadable"])?;
        Info::parse(&String::from_utf8_lossy(&output.stdout))
    }

    /// The VM's `.vbox` file, which says more than `VBoxManage`.
    fn description(&self, info: &Info) -> Result<Description> {
        if self.runner.is_local() {
            let options = ReadOptions { anywhere: true, ..ReadOptions::default() };
            let mut vms = spec::foreign::read(Path::new(&info.file), &options)?;
            return vms.pop().ok_or_else(|| Error::reply(&info.file, "it describes no VM"));
        }
        let bytes = self.runner.read_file(&info.file, describe::LONGEST)?;
        describe::read(&bytes, "vbox", &info.file, false)
    }

    fn summary(&self, name: &str, id: &str) -> VmSummary {
        match self.info(id) {
            Ok(info) => info.summary(),
            // An encrypted VM can be named, and no more.
            Err(error) => VmSummary {
                name: name.into(),
                id: Some(id.into()),
                note: Some(error.to_string()),
                ..VmSummary::default()
            },
        }
    }
}

impl Platform for VirtualBox {
    fn product(&self) -> Result<String> {
        let output = self.expect(&self.runner, "", &["--version"])?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().rfind(|line| line.starts_with(|one: char| one.is_ascii_digit()));
        let version =
            version.ok_or_else(|| Error::reply("VBoxManage --version", "there is none"))?;
        Ok(format!("VirtualBox {}", version.trim()))
    }

    fn ability(&self, verb: Verb) -> Option<Ability> {
        let cannot = verb == Verb::Start && self.runner.is_local() && !Path::new(MODULE).exists();
        cannot.then(|| {
            Ability::no("its kernel module vboxdrv is not loaded, as `omnivisor probe` explains")
        })
    }

    fn list(&self) -> Result<Vec<VmSummary>> {
        let output = self.expect(&self.runner, "", &["list", "vms"])?;
        let names = parse::names(&String::from_utf8_lossy(&output.stdout));
        let mut vms = Vec::new();
        for some in names.chunks(AT_ONCE) {
            let found: Vec<_> = std::thread::scope(|scope| {
                let ask = |(name, id): &(String, String)| {
                    let (name, id) = (name.clone(), id.clone());
                    scope.spawn(move || self.summary(&name, &id))
                };
                let threads: Vec<_> = some.iter().map(ask).collect();
                threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
            });
            vms.extend(found);
        }
        Ok(vms)
    }

    fn show(&self, vm: &str) -> Result<VmDetails> {
        let info = self.info(vm)?;
        let mut summary = info.summary();
        if summary.state == State::Running {
            for card in 0..4 {
                let property = format!("/VirtualBox/GuestInfo/Net/{card}/V4/IP");
                let output = self.runner.run(PROGRAM, &["guestproperty", "get", vm, &property])?;
                summary.addresses.extend(parse::property(&String::from_utf8_lossy(&output.stdout)));
            }
        }
        Ok(VmDetails { summary, description: self.description(&info)? })
    }

    fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>> {
        let output = self.expect(&self.runner, vm, &["showvminfo", vm, "--machinereadable"])?;
        Ok(parse::snapshots(&String::from_utf8_lossy(&output.stdout)))
    }

    fn perform(&self, vm: &str, action: &Action) -> Result<()> {
        let args = match action {
            Action::Start => vec!["startvm", vm, "--type", "headless"],
            Action::Stop { force: false } => vec!["controlvm", vm, "acpipowerbutton"],
            Action::Stop { force: true } => vec!["controlvm", vm, "poweroff"],
            Action::Pause => vec!["controlvm", vm, "pause"],
            Action::Resume => vec!["controlvm", vm, "resume"],
            Action::Reset { force: false } => vec!["controlvm", vm, "reboot"],
            Action::Reset { force: true } => vec!["controlvm", vm, "reset"],
            Action::CreateSnapshot { name, description } => {
                let mut args = vec!["snapshot", vm, "take", name];
                if let Some(text) = description {
                    args.extend(["--description", text]);
                }
                args
            }
            Action::RevertSnapshot { name } => vec!["snapshot", vm, "restore", name],
            Action::DeleteSnapshot { name } => vec!["snapshot", vm, "delete", name],
        };
        // VBoxManage has no way to say that what follows is no option.
        if let Some(word) =
            args.iter().find(|word| word.starts_with('-') && !word.starts_with("--"))
        {
            return Err(Error::Name {
                text: (*word).into(),
                message: "VBoxManage takes what begins with a hyphen for an option".into(),
            });
        }
        let runner = match args[0] {
            "snapshot" => self.runner.clone().time_limit(SNAPSHOT_TIME),
            _ => self.runner.clone(),
        };
        self.expect(&runner, vm, &args).map(drop)
    }

    fn console(&self) -> Option<&dyn ConsoleLog> {
        Some(self)
    }

    fn disks(&self) -> Option<&dyn RemoteDisks> {
        Some(self)
    }

    fn pull(&self) -> Option<&dyn Pull> {
        Some(self)
    }
}

impl HasVmDisks for VirtualBox {
    fn vm_disks(&self, vm: &str) -> Result<VmDisks> {
        let info = self.info(vm)?;
        let summary = info.summary();
        let file = info.file.as_str();
        Ok(VmDisks {
            place: self.place.clone(),
            name: crate::VmName { uri: Some(self.uri.clone()), name: summary.name }.to_string(),
            state: summary.state,
            description: self.description(&info)?,
            document: (describe::file_name(file), self.runner.read_file(file, describe::LONGEST)?),
            home: describe::folder(file),
            format: None,
        })
    }
}

impl ConsoleLog for VirtualBox {
    fn console_log(&self, vm: &str, limit: usize) -> Result<Vec<u8>> {
        let description = self.description(&self.info(vm)?)?;
        describe::serial_log(&self.runner, &description, DRIVER.platform, limit)
    }
}
