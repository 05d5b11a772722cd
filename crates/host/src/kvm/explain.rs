//! Why KVM does not run guests here, in one sentence, and the exact repair.

use super::{
    EACCES, EBUSY, ENODEV, ENOENT, ENOMEM, ENXIO, EPERM, NODE, Scene, Trouble, speed, vendor_module,
};
use crate::cpu::{self, Maker};
use crate::facts::{Availability, Node};
use crate::nested;
use crate::report::{Confidence, FirmwareState, Layer, LayerKind, Repair, Role};

impl Scene<'_> {
    /// One sentence, and what to do about it.
    pub(crate) fn explain(&self, trouble: &Trouble<'_>) -> (String, Vec<Repair>) {
        match *trouble {
            Trouble::NodeMissing => self.no_driver(true),
            Trouble::Open(ENOENT) => self.no_driver(true),
            Trouble::Open(ENODEV | ENXIO) => self.no_driver(false),
            Trouble::Open(EACCES | EPERM) => self.no_permission(),
            Trouble::Open(EBUSY) | Trouble::Guest(_, Some(EBUSY)) => self.busy(),
            Trouble::Guest(reason, Some(ENOMEM)) => (
                format!("KVM has no memory for a guest: {reason}"),
                vec![Repair::advice(
                    "Free some memory, or raise the limit of locked memory (`ulimit -l`)",
                )],
            ),
            Trouble::Open(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                (format!("/dev/kvm is there but cannot be opened: {error}"), Vec::new())
            }
            Trouble::Guest(reason, _) => {
                let advice = Repair::command(
                    "See what the kernel says about it",
                    "sudo dmesg | grep -i kvm",
                );
                (format!("/dev/kvm opens, but it cannot run a guest: {reason}"), vec![advice])
            }
            Trouble::Emulated(speeds) => self.emulated(speeds),
            Trouble::Doubtful => {
                let advice = Repair::command("Measure it", "omnivisor probe");
                ("/dev/kvm opens, but neither its module nor the processor speak for it; it may \
                 emulate kernel code".into(), vec![advice])
            }
        }
    }

    /// No node, or a node without a driver: the first cause on the way from firmware to udev.
    fn no_driver(&self, node_missing: bool) -> (String, Vec<Repair>) {
        let Scene { facts, inside, firmware } = self;
        let maker = Maker::of(facts);
        let (extension, module) = (maker.extension(), maker.module());
        let what = if node_missing {
            "There is no /dev/kvm"
        } else {
            "/dev/kvm is there, but no driver is behind it"
        };
        if inside.iter().any(|layer| layer.id == "wsl1") {
            let repair = Repair::command(
                "In Windows move the distribution to WSL 2",
                "wsl --set-version NAME 2",
            );
            return (format!("{what}: WSL 1 has no Linux kernel"), vec![repair]);
        }
        if let Some(manager) = inside.iter().find(|layer| layer.role == Role::Manager) {
            let repair = match manager.id.as_str() {
                "xen" => Repair::advice(
                    "To use KVM instead of Xen, reboot and choose the entry without Xen in \
                     GRUB's menu",
                ),
                _ => Repair::advice(
                    "To use KVM instead of Hyper-V, boot Linux without the hypervisor",
                ),
            };
            return (
                format!(
                    "{what}: this system is {}, and the hypervisor below keeps {extension} for \
                     itself",
                    manager.name
                ),
                vec![repair],
            );
        }
        if firmware.state == FirmwareState::LockedOff {
            let repair = if firmware.repair.is_empty() {
                nested::repair(inside)
            } else {
                firmware.repair.clone()
            };
            return (
                format!("{what}: {extension} is switched off in the computer's firmware setup"),
                repair,
            );
        }
        if !cpu::usable_extension(facts, inside) {
            return match nested::innermost_hypervisor(inside) {
                Some(layer) => (
                    format!("{what}: {} gives this virtual machine no {extension}", layer.name),
                    nested::repair(inside),
                ),
                None => (format!("{what}: the processor has no {extension}"), Vec::new()),
            };
        }
        if let Some(container) = self.container() {
            return (
                format!("{what}: the {} container was not given it", container.name),
                vec![into_container(container)],
            );
        }
        if vendor_module(facts).is_some() {
            let repair = Repair::command(
                "Let udev make the node",
                "sudo udevadm trigger --name-match=kvm || sudo mknod -m 0660 /dev/kvm c 10 232",
            );
            return (format!("{what}, although {module} is loaded"), vec![repair]);
        }
        let (reason, repair) = self.no_module(module);
        (format!("{what}: {reason}"), repair)
    }

    /// Why the module is not loaded.
    fn no_module(&self, module: &str) -> (String, Vec<Repair>) {
        let kernel = &self.facts.kernel;
        let load = Repair::command("Load it", format!("sudo modprobe {module}"));
        let reboot = || Repair::command("Then restart", "sudo reboot");
        let concerns = |line: &&String| {
            line.contains("kvm") && (line.contains(": blacklist") || line.contains(": install"))
        };
        if let Some(word) = kernel.parameters.iter().find(|word| blacklists(word, module)) {
            let repair = Repair::advice(format!(
                "Remove `{word}` from the kernel's command line (GRUB_CMDLINE_LINUX in \
                 /etc/default/grub), then update GRUB and restart"
            ));
            return (
                format!("the kernel parameter `{word}` forbids the module {module}"),
                vec![repair],
            );
        }
        if kernel.modules_disabled {
            return (
                "loading kernel modules was forbidden (kernel.modules_disabled = 1) until \
             the next restart"
                    .into(),
                vec![reboot()],
            );
        }
        if let Some(line) = kernel.modprobe.iter().find(concerns) {
            let file = line.split(": ").next().unwrap_or_default();
            let repair = Repair::command(
                "Remove that line and load the module",
                format!(
                    "sudo sed -i -E '/^(blacklist|install) +kvm/d' {file} && sudo modprobe {module}"
                ),
            );
            return (format!("{module} is forbidden by {line}"), vec![repair]);
        }
        match kernel.available.get(module) {
            Some(Availability::Loadable) => {
                (format!("the module {module} is not loaded"), vec![load])
            }
            Some(Availability::BuiltIn) => {
                let said = self
                    .facts
                    .log_line(&["kvm"])
                    .map_or(String::new(), |line| format!(" (kernel log: {line})"));
                let look = Repair::command(
                    "See what the kernel says about it",
                    "sudo dmesg | grep -i kvm",
                );
                (format!("{module} is part of the kernel but did not start{said}"), vec![look])
            }
            None if kernel.installed.is_empty() => {
                let reason = "this kernel has no KVM, and no kernel modules are installed";
                (reason.to_owned(), vec![self.other_kernel(module)])
            }
            None if !kernel.installed.contains(&kernel.release) => {
                let reason = format!(
                    "/lib/modules has nothing for the running kernel {}, probably because a \
                     newer one was installed since the last restart",
                    kernel.release
                );
                (reason, vec![Repair::command("Start the installed kernel", "sudo reboot")])
            }
            None => (
                format!("the kernel {} has no module {module}", kernel.release),
                vec![self.other_kernel(module)],
            ),
        }
    }

    fn other_kernel(&self, module: &str) -> Repair {
        let ids = &self.facts.distribution.ids;
        let is = |name: &str| ids.iter().any(|id| id == name);
        let release = &self.facts.kernel.release;
        if is("ubuntu") {
            Repair::command(
                "Install the rest of the kernel's modules",
                format!("sudo apt install linux-modules-extra-{release}"),
            )
        } else if is("debian") {
            Repair::command(
                "Install the distribution's ordinary kernel and restart",
                "sudo apt install linux-image-amd64 && sudo reboot",
            )
        } else if is("fedora") || is("rhel") {
            Repair::command(
                "Install the kernel's modules",
                format!("sudo dnf install kernel-modules-{release}"),
            )
        } else {
            Repair::advice(format!(
                "Boot a kernel with CONFIG_KVM and CONFIG_{}",
                module.to_ascii_uppercase()
            ))
        }
    }

    fn no_permission(&self) -> (String, Vec<Repair>) {
        let Scene { facts, .. } = self;
        let caller = &facts.caller;
        let default = Node::default();
        let node = facts.nodes.get(NODE).unwrap_or(&default);
        let place = format!("/dev/kvm (group {}, mode {:04o})", node.group, node.mode);
        let container = self.container();
        let by_group = node.mode & 0o060 == 0o060;
        // Root of a user namespace is nobody outside of it.
        let root = caller.euid == 0 && !facts.container.user_namespace;
        let allowed_by_mode =
            root || caller.groups.contains(&node.group) && by_group || node.mode & 0o006 == 0o006;
        if allowed_by_mode {
            let (who, repair) = match container {
                Some(container) => (
                    format!("the {} container's device rules refuse", container.name),
                    into_container(container),
                ),
                None => (
                    "a device rule or security module refuses".into(),
                    Repair::command("See who refused", "sudo dmesg | grep -i -e denied -e kvm"),
                ),
            };
            return (
                format!("The permissions of {place} allow it, but {who} to open it"),
                vec![repair],
            );
        }
        if let Some(container) = container.filter(|_| by_group) {
            let repair = match container.id.as_str() {
                "podman" => Repair::command(
                    "Keep your groups in the container",
                    "podman run --device /dev/kvm --group-add keep-groups ...",
                ),
                _ => Repair::command(
                    "Give the container the device and its group",
                    "docker run --device /dev/kvm --group-add \"$(stat -c %g /dev/kvm)\" ...",
                ),
            };
            return (format!("You may not open {place} in this container"), vec![repair]);
        }
        let join = Repair::command(
            "Join the group, then log out and in again",
            format!("sudo usermod -aG {} $USER", if by_group { &node.group } else { "kvm" }),
        );
        if !by_group || node.group == "root" {
            let rule = "echo 'KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", \
             OPTIONS+=\"static_node=kvm\"' | sudo tee /etc/udev/rules.d/65-kvm.rules \
                        && sudo udevadm control --reload && sudo udevadm trigger --name-match=kvm";
            let rule = Repair::command("Open the device to the group kvm", rule);
            return (format!("Only root may open {place}"), vec![rule, join]);
        }
        if caller.assigned_groups.contains(&node.group) {
            let again = Repair::command(
                "Log out and in again; for this shell only",
                format!("newgrp {}", node.group),
            );
            return (
                format!(
                    "You are a member of the group {}, but this login is older than that",
                    node.group
                ),
                vec![again],
            );
        }
        let now =
            Repair::command("Or, until the next restart", "sudo setfacl -m u:$USER:rw /dev/kvm");
        (format!("You are not in the group that may open {place}"), vec![join, now])
    }

    fn busy(&self) -> (String, Vec<Repair>) {
        let extension = Maker::of(self.facts).extension();
        let loaded = |module: &str| self.facts.modules.contains_key(module);
        let (who, repair) = if loaded("vboxdrv") {
            (
                "VirtualBox",
                Repair::command(
                    "Stop its virtual machines, or unload it",
                    "sudo modprobe -r vboxnetadp vboxnetflt vboxdrv",
                ),
            )
        } else if loaded("vmmon") {
            (
                "VMware",
                Repair::command(
                    "Stop its virtual machines, or unload it",
                    "sudo /etc/init.d/vmware stop",
                ),
            )
        } else {
            (
                "Another hypervisor",
                Repair::advice(
                    "Stop the virtual machines of other hypervisors (VirtualBox, VMware)",
                ),
            )
        };
        (format!("{who} holds {extension}, and two hypervisors cannot share it"), vec![repair])
    }

    fn emulated(&self, speeds: Option<(f64, f64)>) -> (String, Vec<Repair>) {
        let verdict = "KVM is there but emulates kernel code; not usable for ordinary guests";
        let measured = match speeds {
            Some((ring0, ring3)) => {
                format!("ring 0: {} M instructions/s, ring 3: {}", speed(ring0), speed(ring3))
            }
            None => "by its module kvm_pvm; not measured".to_owned(),
        };
        let mut repair = Vec::new();
        if !cpu::has_extension(self.facts) {
            repair = nested::repair(self.inside);
            if repair.is_empty() {
                repair.push(Repair::advice(format!(
                    "Use a computer whose processor has {}",
                    Maker::of(self.facts).extension()
                )));
            }
        } else if vendor_module(self.facts) == Some("kvm_pvm") {
            let module = Maker::of(self.facts).module();
            repair.push(Repair::command(
                "Use the processor's own virtualization",
                format!("sudo modprobe -r kvm_pvm && sudo modprobe {module}"),
            ));
        }
        (format!("{verdict} ({measured})"), repair)
    }

    /// The container that we run in, if we are fairly sure of it.
    fn container(&self) -> Option<&Layer> {
        let real = |layer: &&Layer| {
            layer.kind == LayerKind::Container
                && layer.confidence >= Confidence::Likely
                && !layer.id.starts_with("wsl")
        };
        self.inside.iter().find(real)
    }
}

/// Whether a kernel parameter forbids the module.
fn blacklists(word: &str, module: &str) -> bool {
    let list =
        word.strip_prefix("module_blacklist=").or_else(|| word.strip_prefix("modprobe.blacklist="));
    let named =
        |name: &str| matches!(name.replace('-', "_"), name if name == module || name == "kvm");
    word == "nomodule" || list.is_some_and(|list| list.split(',').any(named))
}

/// How to give `/dev/kvm` to a container.
fn into_container(container: &Layer) -> Repair {
    let explain = "Start the container with the device";
    match container.id.as_str() {
        "podman" => {
            Repair::command(explain, "podman run --device /dev/kvm --group-add keep-groups ...")
        }
        "lxc" => Repair::command(
            "Put this into the container's configuration",
            "lxc.mount.entry = /dev/kvm dev/kvm none bind,create=file 0 0",
        ),
        "systemd-nspawn" => Repair::command(
            explain,
            "systemd-nspawn --bind=/dev/kvm --property=DeviceAllow='/dev/kvm rw' ...",
        ),
        "kubernetes" | "containerd" | "cri-o" => Repair::advice(
            "Use a device plugin that offers /dev/kvm (for example KubeVirt's), or a privileged \
             pod with a hostPath volume",
        ),
        "docker" => Repair::command(explain, "docker run --device /dev/kvm ..."),
        _ => Repair::advice("Ask whoever starts the container to give it /dev/kvm"),
    }
}
