//! What is to be run: a VM of any platform or a file of ours, with the command line laid over it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use image::ImageRef;
use spec::foreign::{OWN_DESCRIPTION, is_description};
use spec::{Console, Nic, VmSpec};

use crate::cli::{ConsoleChoice, RunArgs};
use crate::description;
use crate::failure::{Failure, NOT_FOUND, USAGE};
use crate::run::remote::{self, Remote};

/// The description in the file with the command line laid over it.
pub fn describe(args: &RunArgs) -> Result<(VmSpec, Option<Remote>), Failure> {
    let mut over = VmSpec {
        name: args.name.clone(),
        image: args.image.clone(),
        console: args.console.map(|choice| match choice {
            ConsoleChoice::Serial => Console::Serial,
            ConsoleChoice::Virtio => Console::Virtio,
        }),
        cpus: args.cpus.clone().unwrap_or_default(),
        memory: args.memory.clone().unwrap_or_default(),
        smbios: args.smbios.clone().unwrap_or_default(),
        vsock: args.vsock.clone(),
        disks: args.disk.clone(),
        shares: args.share.clone(),
        ..VmSpec::default()
    };
    over.boot.kernel.clone_from(&args.kernel);
    over.boot.initrd.clone_from(&args.initrd);
    over.boot.cmdline.clone_from(&args.cmdline);
    if !args.net.is_empty() {
        let nics = args.net.iter().filter(|text| *text != "none").map(|text| text.parse::<Nic>());
        over.nics = Some(nics.collect::<spec::Result<_>>()?);
    }
    let path = args.image.as_ref().filter(|name| name.parse::<ImageRef>().is_err()).map(Path::new);
    if let Some(path) = path.filter(|path| own_file(path).is_none() && is_description(path)) {
        let (vm, spec) = args.deploy.read(path)?;
        description::tell_differences(&vm);
        over.image = None;
        return Ok((without_cards(spec).merge(over), None));
    }
    args.deploy.refuse_without_description()?;
    if let Some((vm, remote)) = remote::find(args)? {
        over.image = None;
        return Ok((without_cards(vm).merge(over), Some(remote)));
    }
    if let Some(path) = path
        && let Some(vm) = own_or_disk(path, args.deploy.package.allow_outside)?
    {
        over.image = None;
        return Ok((vm.merge(over), None));
    }
    let Some(path) = &args.config else { return Ok((over, None)) };
    Ok((from_file(path)?.merge(over), None))
}

/// Reads our own description.
fn from_file(path: &Path) -> Result<VmSpec, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::new(NOT_FOUND, format!("Cannot read {}: {error}", path.display()))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    Ok(VmSpec::from_toml(&text, &path.display().to_string())?.relative_to(folder))
}

/// Our own description, if `path` is it or a folder with it.
fn own_file(path: &Path) -> Option<PathBuf> {
    let inside = path.join(OWN_DESCRIPTION);
    if inside.is_file() {
        return Some(inside);
    }
    (path.is_file() && path.extension().is_some_and(|end| end == "toml")).then(|| path.to_owned())
}

/// No version, as the end of an image's name is.
fn is_ending(end: &OsStr) -> bool {
    end.as_encoded_bytes().first().is_some_and(u8::is_ascii_alphabetic)
}

/// What was named as a file and is no VM.
fn no_vm(path: &Path) -> Failure {
    let shown = path.display();
    if path.is_dir() {
        Failure::new(NOT_FOUND, format!("There is no VM in the folder {shown}"))
    } else {
        Failure::new(NOT_FOUND, format!("There is no VM at {shown}"))
    }
}

/// One of our own VMs or that of a disk alone, if that is what is to be run.
fn own_or_disk(path: &Path, anywhere: bool) -> Result<Option<VmSpec>, Failure> {
    if let Some(own) = own_file(path) {
        return from_file(&own).map(Some);
    }
    let of_disk = description::of_disk(path, anywhere);
    let is_file = path.is_dir()
        || path.as_os_str().as_encoded_bytes().contains(&b'/')
        || path.extension().is_some_and(is_ending);
    if of_disk.is_none() && is_file { Err(no_vm(path)) } else { Ok(of_disk) }
}

/// Without network cards where nothing connects them.
fn without_cards(mut spec: VmSpec) -> VmSpec {
    if !passt_is_installed() && spec.nics.as_ref().is_some_and(|nics| !nics.is_empty()) {
        tell!("Its network cards are left out: passt, which connects them, is not installed.");
        spec.nics = Some(Vec::new());
    }
    spec
}

/// Has the images themselves written to, if whoever runs the VM agrees.
pub fn write_in_place(spec: &mut VmSpec, args: &RunArgs, is_remote: bool) -> Result<(), Failure> {
    if is_remote {
        return Err(Failure::new(USAGE, "The disks of another host's VM are not written in place")
            .help("leave out --in-place, so that an overlay takes the writes"));
    }
    let mut images = Vec::new();
    for disk in spec.disks.iter_mut().filter(|disk| !disk.readonly && !disk.in_place) {
        (disk.in_place, disk.discard) = (true, false);
        images.push(disk.path.display().to_string());
    }
    if images.is_empty() || args.dry_run {
        return Ok(());
    }
    let images = images.join(", ");
    args.consent.ask(&format!("{images}: what the guest writes there cannot be undone."))
}

/// Whether there is what connects user-mode networks.
pub fn passt_is_installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join("passt").is_file())
}
