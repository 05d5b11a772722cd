//! Hypervisor products as hosts of virtual machines, and who holds the processor's virtualization.

use crate::cpu::{self, Maker};
use crate::facts::{Facts, Node};
use crate::kvm::{self, EACCES};
use crate::report::{Candidate, Evidence, Holder, Layer, Repair, Role, Usability};

/// Everyone who has loaded what takes VT-x or AMD-V, and whether he has it now.
pub(crate) fn holders(facts: &Facts, inside: &[Layer]) -> Vec<Holder> {
    let mut list = Vec::new();
    for layer in inside.iter().filter(|layer| layer.role == Role::Manager) {
        list.push(Holder { id: layer.id.clone(), holds: true, evidence: layer.evidence.clone() });
    }
    if let Some(name) = kvm::vendor_module(facts).filter(|_| cpu::has_extension(facts)) {
        // Linux 6.12 and later switch the extension on when the module is loaded, unless told
        // otherwise.
        let at_load = facts.parameter_is_on("kvm", "enable_virt_at_load") == Some(true);
        let mut evidence = vec![loaded(facts, name)];
        if at_load {
            evidence.push(Evidence::new("/sys/module/kvm/parameters/enable_virt_at_load", "Y"));
        }
        list.push(Holder { id: "kvm".into(), holds: at_load || in_use(facts, name), evidence });
    }
    for (id, name) in [("virtualbox", "vboxdrv"), ("vmware", "vmmon")] {
        if facts.modules.contains_key(name) {
            list.push(Holder {
                id: id.into(),
                holds: in_use(facts, name),
                evidence: vec![loaded(facts, name)],
            });
        }
    }
    list
}

/// The verdict on each platform.
pub(crate) fn candidates(facts: &Facts, inside: &[Layer], holders: &[Holder]) -> Vec<Candidate> {
    let scene = Scene { facts, inside, holders };
    vec![
        scene.xen(),
        scene.vmware(),
        scene.virtualbox(),
        scene.hyper_v(),
        scene.parallels(),
        scene.libvirt(),
    ]
}

struct Scene<'f> {
    facts: &'f Facts,
    inside: &'f [Layer],
    holders: &'f [Holder],
}

fn in_use(facts: &Facts, module: &str) -> bool {
    facts.modules.get(module).and_then(|module| module.users).is_some_and(|users| users > 0)
}

fn loaded(facts: &Facts, module: &str) -> Evidence {
    let users = facts.modules.get(module).and_then(|module| module.users);
    let says = users.map_or("built in".to_owned(), |users| format!("loaded, {users} users"));
    Evidence::new(format!("/sys/module/{module}"), says)
}

impl Scene<'_> {
    fn xen(&self) -> Candidate {
        let dom0 =
            self.inside.iter().find(|layer| layer.id == "xen" && layer.role == Role::Manager);
        let mut evidence = dom0.map(|layer| layer.evidence.clone()).unwrap_or_default();
        evidence.extend(self.programs(&["xl", "xe"]));
        let has_tool = self.has_program("xl") || self.has_program("xe");
        let verdict = match (dom0, has_tool) {
            (Some(_), false) => unusable(
                "This is dom0, but Xen's programs are missing",
                self.install(
                    "Install them",
                    &[
                        ("apt", "xen-utils-common xen-tools"),
                        ("dnf", "xen-runtime"),
                        ("zypper", "xen-tools"),
                    ],
                ),
            ),
            (Some(_), true) => match self.facts.nodes.get("/dev/xen/privcmd") {
                Some(Node { errno: None, .. }) => usable("This is dom0, with Xen's programs"),
                Some(_) => unusable(
                    "Only root may talk to Xen",
                    vec![Repair::command("Run the program as root", "sudo omnivisor ...")],
                ),
                None => unusable(
                    "The kernel's interface to Xen is missing",
                    vec![Repair::command("Load it", "sudo modprobe xen-privcmd")],
                ),
            },
            (None, true) => unusable(
                "Xen's programs are installed, but this kernel was not started by Xen as its dom0",
                vec![Repair::command(
                    "Restart, and choose the entry with Xen in GRUB's menu",
                    "sudo reboot",
                )],
            ),
            (None, false) => absent(
                "Not installed",
                self.install(
                    "Install it and restart",
                    &[("apt", "xen-system-amd64"), ("dnf", "xen"), ("zypper", "xen xen-tools")],
                ),
            ),
        };
        verdict.named("xen", "Xen", evidence)
    }

    fn vmware(&self) -> Candidate {
        let mut evidence = self.programs(&["vmware", "vmplayer", "vmrun"]);
        evidence.extend(self.node("/dev/vmmon"));
        let installed = !self.programs(&["vmware", "vmplayer", "vmrun"]).is_empty();
        let rebuild = || {
            vec![Repair::command(
                "Build and load its modules for this kernel",
                "sudo vmware-modconfig --console --install-all",
            )]
        };
        let verdict = if !installed && self.node("/dev/vmmon").is_none() {
            absent(
                "Not installed",
                vec![Repair::advice(
                    "VMware Workstation Pro comes from Broadcom's download site only",
                )],
            )
        } else if !installed {
            unusable("Its modules are loaded, but its programs are not in PATH", Vec::new())
        } else if !self.facts.modules.contains_key("vmmon") || self.node("/dev/vmmon").is_none() {
            unusable("Its module vmmon is not loaded", rebuild())
        } else if let Some(other) = self.other_holder("vmware") {
            self.contested(other)
        } else {
            usable("Its programs and modules are there")
        };
        verdict.named("vmware", "VMware Workstation", evidence)
    }

    fn virtualbox(&self) -> Candidate {
        let mut evidence = self.programs(&["VBoxManage"]);
        evidence.extend(self.node("/dev/vboxdrv"));
        let node = self.facts.nodes.get("/dev/vboxdrv");
        let verdict = match (self.has_program("VBoxManage"), node) {
            (false, None) => absent(
                "Not installed",
                self.install(
                    "Install it",
                    &[
                        ("apt", "virtualbox virtualbox-dkms"),
                        ("dnf", "VirtualBox"),
                        ("zypper", "virtualbox"),
                        ("pacman", "virtualbox virtualbox-host-dkms"),
                    ],
                ),
            ),
            (false, Some(_)) => {
                unusable("Its module is loaded, but VBoxManage is not in PATH", Vec::new())
            }
            (true, None) => {
                let build = if self.is_like("debian") {
                    "sudo modprobe vboxdrv || sudo dpkg-reconfigure virtualbox-dkms"
                } else {
                    "sudo modprobe vboxdrv || sudo /sbin/vboxconfig"
                };
                unusable(
                    "Its module vboxdrv is not loaded, so it can do everything but start a \
                     virtual machine",
                    vec![Repair::command("Load it, or build it for this kernel", build)],
                )
            }
            (true, Some(_)) => match self.other_holder("virtualbox") {
                Some(other) => self.contested(other),
                // The node belongs to root with mode 0600: VBoxManage is set-uid root and opens it
                // for us.
                None => usable("VBoxManage and its module are there"),
            },
        };
        verdict.named("virtualbox", "VirtualBox", evidence)
    }

    fn hyper_v(&self) -> Candidate {
        let root =
            self.inside.iter().find(|layer| layer.id == "hyper-v" && layer.role == Role::Manager);
        let mut evidence = root.map(|layer| layer.evidence.clone()).unwrap_or_default();
        evidence.extend(self.node("/dev/mshv"));
        let wsl = self.inside.iter().any(|layer| layer.id.starts_with("wsl"));
        let verdict = match (self.facts.nodes.get("/dev/mshv"), root) {
            (Some(Node { errno: None, .. }), _) => usable("/dev/mshv opens"),
            (Some(Node { errno: Some(EACCES), group, .. }), _) if group != "root" => unusable(
                "You may not open /dev/mshv",
                vec![Repair::command(
                    "Join its group, then log out and in again",
                    format!("sudo usermod -aG {group} $USER"),
                )],
            ),
            (Some(_), _) => unusable(
                "/dev/mshv cannot be opened",
                vec![Repair::command("Run the program as root", "sudo omnivisor ...")],
            ),
            (None, _) if wsl => unusable(
                "Its virtual machines belong to Windows, outside of WSL",
                vec![Repair::command("Look at them from here", "powershell.exe Get-VM")],
            ),
            (None, Some(_)) => unusable(
                "This is its root partition, but there is no /dev/mshv",
                vec![Repair::command("Load its module", "sudo modprobe mshv_root")],
            ),
            (None, None) => absent(
                "This system is not its root partition (that is Windows, or Linux started by it)",
                Vec::new(),
            ),
        };
        verdict.named("hyper-v", "Hyper-V", evidence)
    }

    fn parallels(&self) -> Candidate {
        let mut evidence = self.programs(&["prlctl"]);
        evidence.extend(self.node("/dev/prl_vm_host"));
        let verdict = if self.has_program("prlctl") {
            usable("prlctl is there (Virtuozzo, or Parallels Server)")
        } else {
            absent("Not installed; Parallels Desktop exists only for macOS", Vec::new())
        };
        verdict.named("parallels", "Parallels", evidence)
    }

    fn libvirt(&self) -> Candidate {
        const SOCKETS: [&str; 2] = ["/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock"];
        let socket = SOCKETS.iter().find_map(|&path| Some((path, self.facts.nodes.get(path)?)));
        let mut evidence = self.programs(&["virsh", "virtqemud", "libvirtd"]);
        evidence.extend(SOCKETS.iter().filter_map(|path| self.node(path)));
        let daemon = self.has_program("virtqemud") || self.has_program("libvirtd");
        let verdict = match socket {
            Some((_, Node { errno: None, .. })) => {
                usable("Its daemon answers on a socket that you may open")
            }
            Some((path, node)) if node.mode & 0o060 == 0o060 && node.group != "root" => {
                let join = Repair::command(
                    "Join the group, then log out and in again",
                    format!("sudo usermod -aG {} $USER", node.group),
                );
                let session = Repair::command(
                    "Or use your own instance of it",
                    "virsh -c qemu:///session list --all",
                );
                unusable(
                    &format!("You are not in the group that may open {path}"),
                    vec![join, session],
                )
            }
            Some((path, _)) => unusable(
                &format!("You may not open {path}"),
                vec![Repair::command(
                    "Use your own instance of it",
                    "virsh -c qemu:///session list --all",
                )],
            ),
            None if daemon => unusable(
                "Its daemon is installed and not running",
                vec![Repair::command(
                    "Start it",
                    "sudo systemctl enable --now virtqemud.socket || sudo systemctl enable \
                     --now libvirtd.socket",
                )],
            ),
            None if self.has_program("virsh") => unusable(
                "Only its client is installed",
                self.install(
                    "Install the daemon",
                    &[
                        ("apt", "libvirt-daemon-system"),
                        ("dnf", "libvirt-daemon-kvm"),
                        ("zypper", "libvirt-daemon-qemu"),
                        ("pacman", "libvirt"),
                    ],
                ),
            ),
            None => absent(
                "Not installed",
                self.install(
                    "Install it",
                    &[
                        ("apt", "libvirt-daemon-system libvirt-clients"),
                        ("dnf", "libvirt"),
                        ("zypper", "libvirt"),
                        ("pacman", "libvirt"),
                    ],
                ),
            ),
        };
        verdict.named("libvirt", "libvirt", evidence)
    }

    /// Someone else who has the extension now.
    fn other_holder(&self, id: &str) -> Option<&Holder> {
        self.holders.iter().find(|holder| holder.id != id && holder.holds)
    }

    fn contested(&self, other: &Holder) -> Verdict {
        let extension = Maker::of(self.facts).extension();
        let repair = match other.id.as_str() {
            "kvm" => {
                let module = kvm::vendor_module(self.facts).unwrap_or("kvm_intel");
                vec![Repair::command(
                    "Stop KVM's virtual machines, then take its module out",
                    format!("sudo modprobe -r {module}"),
                )]
            }
            "virtualbox" => vec![Repair::command(
                "Stop VirtualBox's virtual machines, then take its module out",
                "sudo modprobe -r vboxnetadp vboxnetflt vboxdrv",
            )],
            "vmware" => vec![Repair::command(
                "Stop VMware's virtual machines, then take its modules out",
                "sudo /etc/init.d/vmware stop",
            )],
            _ => vec![Repair::advice("Boot without the other hypervisor")],
        };
        unusable(
            &format!("{} holds {extension} now, and two hypervisors cannot share it", other.id),
            repair,
        )
    }

    fn has_program(&self, name: &str) -> bool {
        self.facts.programs.contains_key(name)
    }

    fn programs(&self, names: &[&str]) -> Vec<Evidence> {
        names
            .iter()
            .filter_map(|&name| Some(Evidence::new(self.facts.programs.get(name)?, "there")))
            .collect()
    }

    fn node(&self, path: &str) -> Option<Evidence> {
        let node = self.facts.nodes.get(path)?;
        let says = match node.errno {
            None => "may be opened".to_owned(),
            Some(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
        };
        Some(Evidence::new(path, format!("group {}, mode {:04o}: {says}", node.group, node.mode)))
    }

    fn is_like(&self, id: &str) -> bool {
        self.facts.distribution.ids.iter().any(|known| known == id)
    }

    /// The command of this distribution, if the package has a name there.
    fn install(&self, explain: &str, packages: &[(&str, &str)]) -> Vec<Repair> {
        let tool = if self.is_like("debian") || self.is_like("ubuntu") {
            "apt"
        } else if self.is_like("fedora") || self.is_like("rhel") {
            "dnf"
        } else if self.is_like("suse") || self.is_like("opensuse") {
            "zypper"
        } else if self.is_like("arch") {
            "pacman"
        } else {
            return Vec::new();
        };
        let install = if tool == "pacman" { "-S" } else { "install" };
        let package = packages.iter().find(|(known, _)| *known == tool);
        package
            .map(|(_, names)| Repair::command(explain, format!("sudo {tool} {install} {names}")))
            .into_iter()
            .collect()
    }
}

/// A verdict before it has a name.
struct Verdict {
    state: Usability,
    reason: String,
    repair: Vec<Repair>,
}

impl Verdict {
    fn named(self, id: &str, name: &str, evidence: Vec<Evidence>) -> Candidate {
        let Self { state, reason, repair } = self;
        Candidate { id: id.into(), name: name.into(), state, reason, evidence, repair }
    }
}

fn usable(reason: &str) -> Verdict {
    Verdict { state: Usability::Usable, reason: reason.into(), repair: Vec::new() }
}

fn unusable(reason: &str, repair: Vec<Repair>) -> Verdict {
    Verdict { state: Usability::Unusable, reason: reason.into(), repair }
}

fn absent(reason: &str, repair: Vec<Repair>) -> Verdict {
    Verdict { state: Usability::Absent, reason: reason.into(), repair }
}
