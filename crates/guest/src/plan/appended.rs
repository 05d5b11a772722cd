//! What is appended to a guest's initial RAM disk, in memory: what it lacks on a machine with virtio devices.

use image::Archive;

use super::linux::pad;
use super::{LinuxBoot, NicName};
use crate::guest::Guest;
use crate::initrd::{Contents, module_name};
use crate::modules::Modules;
use crate::{Error, Result, VolumeReport};

/// What a guest needs to reach its root on a virtio disk.
const DRIVERS: [&str; 2] = ["virtio_pci", "virtio_blk"];
/// Where our program is in what is appended; its name tells it what to do.
const CHAIN: &str = "omnivisor/init";
/// Its list of modules.
const MODULE_LIST: &str = "etc/omnivisor/modules";
/// Before an appended archive: the kernel begins archives at multiples of 4.
const ALIGNMENT: usize = 512;
/// Where the rules wait in the initial RAM disk.
const LINK_RULES: &str = "etc/omnivisor/60-omnivisor-links.rules";

impl Guest {
    /// Appends to a guest's initial RAM disk what it lacks, if anything.
    pub(super) fn append(
        &self,
        boot: &mut LinuxBoot,
        initrd: &mut Vec<u8>,
        nics: &[NicName],
    ) -> Result<()> {
        let mut archive = Archive::default();
        let mut is_needed = self.add_modules(boot, initrd, &mut archive, !nics.is_empty())?;
        if !nics.is_empty() {
            is_needed = true;
            add_names(nics, &mut archive)?;
        }
        let report = self.report();
        let strip = |(device, volume): (&str, &VolumeReport)| {
            Some((device.strip_prefix("/dev/")?.to_owned(), volume.name.clone()))
        };
        let links: Vec<_> = report
            .named_by_controller()
            .filter_map(strip)
            .filter(|(former, here)| former != here)
            .collect();
        if !links.is_empty() {
            is_needed = true;
            add_links(&links, boot, &mut archive)?;
        }
        if is_needed {
            pad(initrd, ALIGNMENT);
            archive.write_to(initrd)?;
        }
        Ok(())
    }

    /// Puts the guest's virtio modules into `archive` if its initial RAM disk lacks them; whether it does.
    fn add_modules(
        &self,
        boot: &mut LinuxBoot,
        initrd: &[u8],
        archive: &mut Archive,
        with_network: bool,
    ) -> Result<bool> {
        let (Some(root), Some(release)) = (&self.root, boot.release.as_deref()) else {
            return Ok(false);
        };
        let modules = match Modules::of(&root.tree, release) {
            Ok(modules) => modules,
            // A kernel without modules has its drivers built in, or none.
            Err(Error::NotFound(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        let contents = Contents::of(initrd)?;
        let mut paths: Vec<String> = Vec::new();
        let network = with_network.then_some("virtio_net");
        for driver in DRIVERS.into_iter().chain(network) {
            match modules.closure(driver) {
                Some(closure) => {
                    for path in closure {
                        if !paths.contains(&path) {
                            paths.push(path);
                        }
                    }
                }
                None => {
                    let text = format!("The guest's kernel {release} has no driver {driver}.");
                    boot.notes.push(text);
                }
            }
        }
        let is_there =
            |path: &String| module_name(path).is_none_or(|name| contents.modules.contains(&name));
        if paths.iter().all(is_there) || !contents.has_init {
            return Ok(false);
        }
        let mut list = String::new();
        let mut names = Vec::new();
        for path in &paths {
            let Some(name) = module_name(path) else { continue };
            let place = format!("omnivisor/{name}.ko");
            archive.file(&place, 0o600, modules.read(path)?)?;
            list.push_str(&format!("/{place}\n"));
            names.push(name);
        }
        archive.file(MODULE_LIST, 0o600, list)?;
        archive.file(CHAIN, 0o700, image::AGENT)?;
        boot.cmdline = format!("{} rdinit=/{CHAIN}", boot.cmdline);
        boot.notes.push(format!(
            "The guest's initial RAM disk lacks drivers, which are added in memory: {}.",
            names.join(", ")
        ));
        boot.added_modules = names;
        Ok(true)
    }
}

/// Links with the former names of devices: rules for udev in the initial RAM disk, which hands them on to the
/// root's udev by /run, so that systemd finds the devices that it waits for.
fn add_links(
    links: &[(String, String)],
    boot: &mut LinuxBoot,
    archive: &mut Archive,
) -> Result<()> {
    let rules: String = links
        .iter()
        .map(|(former, here)| {
            format!("SUBSYSTEM==\"block\", KERNEL==\"{here}\", SYMLINK+=\"{former}\"\n")
        })
        .collect();
    let hand_on = format!(
        "SUBSYSTEM==\"block\", KERNEL==\"vd*\", RUN+=\"/bin/sh -c 'mkdir -p /run/udev/rules.d; \
         cp /{LINK_RULES} /run/udev/rules.d/'\"\n"
    );
    archive.file(
        "etc/udev/rules.d/60-omnivisor-links.rules",
        0o644,
        format!("{rules}{hand_on}"),
    )?;
    archive.file(LINK_RULES, 0o644, rules)?;
    for (former, here) in links {
        boot.notes
            .push(format!("The guest's fstab names /dev/{former}, which leads to /dev/{here}."));
    }
    Ok(())
}

/// Link files for udev in the initial RAM disk, which renames cards before the root's own rules see them.
fn add_names(nics: &[NicName], archive: &mut Archive) -> Result<()> {
    for (index, nic) in nics.iter().enumerate() {
        let is_mac = |c: char| c.is_ascii_hexdigit() || c == ':';
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if !nic.mac.chars().all(is_mac) || nic.name.is_empty() || !nic.name.chars().all(is_name) {
            continue;
        }
        let text = format!("[Match]\nMACAddress={}\n\n[Link]\nName={}\n", nic.mac, nic.name);
        archive.file(&format!("etc/systemd/network/00-omnivisor-{index}.link"), 0o644, text)?;
    }
    Ok(())
}
