//! What makes a Linux guest permanently at home on virtio, and the script that does it from inside: the guest's own
//! kernel starts it instead of init, before anything else of the guest runs.

use guest::{NicName, Report};

/// What the script says when it is through; a number of failures follows.
pub const FINISHED: &str = "omnivisor: finished, failures: ";
/// What it says before each step.
pub const SAYS: &str = "omnivisor: ";

/// Changes to a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What is changed, in sentences.
    pub sentences: Vec<String>,
    steps: Vec<String>,
}

/// Files in which boot loaders and their generators name the root's device.
const BOOT_FILES: &str = "/boot/grub/grub.cfg /boot/grub2/grub.cfg /boot/grub/menu.lst /boot/grub/grub.conf /etc/default/grub \
    /etc/kernel/cmdline /boot/extlinux/extlinux.conf /boot/loader/entries/*.conf /boot/efi/loader/entries/*.conf";
/// Packages of hypervisors' tools in Debian's, Red Hat's and SUSE's families.
const TOOLS: &str = "open-vm-tools open-vm-tools-desktop virtualbox-guest-utils virtualbox-guest-x11 virtualbox-guest-additions \
    hyperv-daemons hypervkvpd hypervvssd xe-guest-utilities xe-guest-utilities-latest";

impl Changes {
    /// What this guest needs: `added` are the drivers that its initial RAM disk lacks, `nics` the cards that keep names.
    pub fn of(report: &Report, added: &[String], nics: &[NicName], remove_tools: bool) -> Self {
        let mut changes = Self::default();
        let Some(os) = &report.os else { return changes };
        changes.devices(report);
        if !added.is_empty() {
            changes
                .sentences
                .push(format!("Its initial RAM disk is built with {}", added.join(", ")));
            changes.steps.push(INITRAMFS.to_owned());
        }
        for (index, nic) in nics.iter().enumerate() {
            changes.sentences.push(format!("The network card {} is called {}", nic.mac, nic.name));
            changes.steps.push(format!(
                "if [ -d /etc/systemd ]; then mkdir -p /etc/systemd/network; printf '%s\\n' '[Match]' 'MACAddress={}' '' '[Link]' \
                 'Name={}' >/etc/systemd/network/10-omnivisor-{index}.link; fi",
                nic.mac, nic.name
            ));
        }
        if remove_tools && !os.tools.is_empty() {
            changes.sentences.push(format!("Packages of {} are removed", os.tools.join(", ")));
            changes.steps.push(format!("remove_packages {TOOLS}"));
        }
        changes
    }

    /// Devices that are named by their controller become UUIDs.
    fn devices(&mut self, report: &Report) {
        let entries = report.boot.iter().flat_map(|menu| &menu.entries);
        let words = entries.flat_map(|entry| entry.cmdline.split_whitespace());
        let words = words.filter_map(|word| word.split_once('='));
        let in_menu =
            words.filter_map(|(key, value)| Some((value, report.volume_of_word(key, value)?)));
        let mut names: Vec<_> = report.named_by_controller().chain(in_menu).collect();
        // What the fstab says of a name comes first.
        names.sort_by_key(|(name, _)| *name);
        names.dedup_by_key(|(name, _)| *name);
        for (name, volume) in names {
            let Some(uuid) = volume.uuid.as_deref() else { continue };
            let is_plain =
                |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "/-_".contains(c));
            if !is_plain(name) || !is_plain(uuid) {
                continue;
            }
            self.sentences.push(format!(
                "{name} becomes UUID={uuid} in fstab, crypttab and the boot loader's menu"
            ));
            self.steps.push(format!("rename_device {name} {uuid}"));
        }
    }

    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The script, padded with empty lines to whole sectors.
    pub fn script(&self) -> Vec<u8> {
        let mut text = format!("{HEAD}boot_files='{BOOT_FILES}'\n");
        for step in &self.steps {
            text.push_str(step);
            text.push('\n');
        }
        text.push_str(TAIL);
        let mut bytes = text.into_bytes();
        bytes.resize(bytes.len().next_multiple_of(4096), b'\n');
        bytes
    }
}

/// File systems that are needed, and what the steps are made of. A file is rewritten in place, so that its owner, mode and label
/// stay, and its former content is kept beside it.
const HEAD: &str = r#"#!/bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH
failures=0
say() { echo "omnivisor: $*"; }
failed() { say "failed: $*"; failures=$((failures + 1)); }
mount -o remount,rw / || failed "the root cannot be written"
: >/.omnivisor
# What is made from now on has a later time, whose unit is a tick.
[ ! -f /etc/selinux/config ] || sleep 0.1
[ -d /proc/1 ] || mount -t proc proc /proc
[ -d /sys/class ] || mount -t sysfs sys /sys
change() {
    [ -f "$1" ] && grep -q -- "$3" "$1" || return 0
    sed "$2" "$1" >"$1.omnivisor" || { failed "$1 cannot be changed"; rm -f "$1.omnivisor"; return 0; }
    [ -e "$1.before-omnivisor" ] || cp -p "$1" "$1.before-omnivisor"
    cat "$1.omnivisor" >"$1" || failed "$1 cannot be written"
    rm -f "$1.omnivisor"
    say "changed $1"
}
mounted=
mount_all() {
    [ -z "$mounted" ] || return 0
    mounted=1
    for folder in /usr /var /boot /boot/efi; do
        grep -q "^[^#][^ 	]*[ 	][ 	]*$folder[ 	]" /etc/fstab 2>/dev/null && mount "$folder"
    done
}
rename_device() {
    change /etc/fstab "s#^$1\([ 	]\)#UUID=$2\1#" "^$1[ 	]"
    change /etc/crypttab "s#\([ 	]\)$1\([ 	]\|\$\)#\1UUID=$2\2#" "[ 	]$1"
    mount_all
    for file in $boot_files; do
        change "$file" "s#=$1\([ 	\"']\|\$\)#=UUID=$2\1#g" "=$1"
    done
}
remove_packages() {
    if command -v dpkg-query >/dev/null; then
        for package in "$@"; do
            [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || continue
            DEBIAN_FRONTEND=noninteractive dpkg --purge "$package" </dev/null && say "removed $package" || failed "$package stays"
        done
    elif command -v rpm >/dev/null; then
        for package in "$@"; do
            rpm -q "$package" >/dev/null 2>&1 || continue
            rpm -e "$package" </dev/null && say "removed $package" || failed "$package stays"
        done
    fi
}
initramfs() {
    mount_all
    if command -v update-initramfs >/dev/null; then
        for module in virtio_pci virtio_blk virtio_net; do
            grep -qx "$module" /etc/initramfs-tools/modules 2>/dev/null || echo "$module" >>/etc/initramfs-tools/modules
        done
        update-initramfs -u -k all </dev/null || failed "update-initramfs"
    elif command -v dracut >/dev/null; then
        echo 'add_drivers+=" virtio_pci virtio_blk virtio_net "' >/etc/dracut.conf.d/omnivisor.conf
        for version in /lib/modules/*; do
            [ -e "$version/modules.dep" ] || continue
            version=${version##*/} image=
            # Where the boot loader's menu has it, in Debian's, Red Hat's and SUSE's families.
            for file in "/boot/initrd.img-$version" "/boot/initramfs-$version.img" "/boot/initrd-$version"; do
                if [ -f "$file" ]; then image=$file; break; fi
            done
            if [ -n "$image" ]; then
                dracut --force "$image" "$version" </dev/null || failed "dracut for $version"
            else
                dracut --force --kver "$version" </dev/null || failed "dracut for $version"
            fi
        done
    elif command -v mkinitcpio >/dev/null; then
        change /etc/mkinitcpio.conf 's/^MODULES=\([("]\)/MODULES=\1virtio_pci virtio_blk virtio_net /' '^MODULES=[("]'
        mkinitcpio -P </dev/null || failed "mkinitcpio"
    else
        failed "no program that builds its initial RAM disk was found"
    fi
}
# What was made gets the labels of the guest's policy of SELinux; before that is loaded, the kernel gives none.
label() {
    mode=$(sed -n 's/^SELINUX=\([a-z]*\).*/\1/p' /etc/selinux/config 2>/dev/null)
    policy=$(sed -n 's/^SELINUXTYPE=\([a-z]*\).*/\1/p' /etc/selinux/config 2>/dev/null)
    case $mode in enforcing | permissive) ;; *) return 0 ;; esac
    contexts=/etc/selinux/$policy/contexts/files/file_contexts
    if command -v setfiles >/dev/null && [ -f "$contexts" ] &&
        find /etc /boot /var -xdev -cnewer /.omnivisor -print0 | xargs -0 -r setfiles -F "$contexts"; then
        say "labelled what was changed, for SELinux"
    else
        : >/.autorelabel
        say "the guest labels its files anew at its next start, for SELinux"
    fi
}
"#;

const INITRAMFS: &str = "say 'building the initial RAM disk'; initramfs";

/// Writes everything and switches off. Were PID 1 to end, that would be a panic.
const TAIL: &str = r#"label
rm -f /.omnivisor
sync
for folder in /boot/efi /boot /var /usr; do umount "$folder" 2>/dev/null; done
mount -o remount,ro / 2>/dev/null
sync
say "finished, failures: $failures"
echo o >/proc/sysrq-trigger
while :; do sleep 60; done
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use guest::{Fstab, Os, VolumeReport};
    use std::process::Command;

    fn report(name: &str, uuid: &str) -> Report {
        let line = Fstab {
            spec: name.into(),
            path: "/".into(),
            kind: "ext4".into(),
            options: "defaults".into(),
        };
        let os =
            Os { kind: "linux", fstab: vec![line], tools: vec!["VMware tools"], ..Os::default() };
        let volume = VolumeReport {
            name: "vda2".into(),
            uuid: Some(uuid.into()),
            ..VolumeReport::default()
        };
        Report { disks: Vec::new(), volumes: vec![volume], os: Some(os), root: None, boot: None }
    }

    #[test]
    fn the_script_is_one_that_a_shell_reads() {
        let nics = [NicName { mac: "00:50:56:00:00:01".into(), name: "ens192".into() }];
        let changes =
            Changes::of(&report("/dev/sda2", "12-ab"), &["virtio_blk".into()], &nics, true);
        assert_eq!(changes.sentences.len(), 4);
        let script = changes.script();
        assert_eq!(script.len() % 512, 0);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        std::fs::write(&path, &script).unwrap();
        assert!(Command::new("sh").arg("-n").arg(&path).status().unwrap().success());
    }

    #[test]
    fn devices_are_renamed_in_fstab_and_menus_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let menu = folder.path().join("menu");
        std::fs::write(
            &menu,
            "kernel /k root=/dev/sda2 ro\nroot=/dev/sda21\nroot=\"/dev/sda2\"\nx root=/dev/sda2",
        )
        .unwrap();
        let script = format!(
            "{}boot_files='{}'\nmount_all() {{ :; }}\nrename_device /dev/sda2 12-ab\n",
            HEAD.replace("mount -o remount,rw /", "true").replace("/etc/", "/nonexistent/"),
            menu.display()
        );
        let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            std::fs::read_to_string(&menu).unwrap(),
            "kernel /k root=UUID=12-ab ro\nroot=/dev/sda21\nroot=\"/dev/sda2\"\nx root=UUID=12-ab"
        );
        assert!(folder.path().join("menu.before-omnivisor").exists());
    }

    /// What a step of the script does in `root`, whose programs alone it finds.
    fn in_root(root: &std::path::Path, step: &str) -> String {
        let root = root.display().to_string();
        let mut head = HEAD.replace("mount -o remount,rw /", "true");
        for folder in ["/etc", "/boot", "/lib/", "/var", "/."] {
            for before in [" ", "\"", ">", "="] {
                let (from, to) = (format!("{before}{folder}"), format!("{before}{root}{folder}"));
                head = head.replace(&from, &to);
            }
        }
        let path = format!("PATH={root}/bin:/usr/bin:/bin:/usr/sbin:/sbin; export PATH");
        let head: Vec<_> =
            head.lines().map(|line| if line.starts_with("PATH=") { &path } else { line }).collect();
        let script = format!("{}\nmount_all() {{ :; }}\n{step}\n", head.join("\n"));
        let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Puts a program into `root` that notes how it was called.
    fn program(root: &std::path::Path, name: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = root.join("bin").join(name);
        std::fs::create_dir_all(root.join("bin")).unwrap();
        let text = format!("#!/bin/sh\necho {name} \"$@\" >>'{}/calls'\n", root.display());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// `mkinitcpio.conf` as Arch Linux has it; the program itself is in no archive of Debian's.
    #[test]
    fn mkinitcpio_gets_its_modules_and_keeps_its_other_words() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        program(root, "mkinitcpio");
        std::fs::create_dir(root.join("etc")).unwrap();
        let conf = root.join("etc/mkinitcpio.conf");
        let text = "# vim:set ft=sh:\nMODULES=()\nBINARIES=()\nFILES=()\nHOOKS=(base udev autodetect microcode modconf kms keyboard \
            keymap consolefont block filesystems fsck)\n";
        std::fs::write(&conf, text).unwrap();
        let talk = in_root(root, INITRAMFS);
        assert!(talk.contains("changed ") && !talk.contains("failed"), "{talk}");
        let expected = text.replace("MODULES=()", "MODULES=(virtio_pci virtio_blk virtio_net )");
        assert_eq!(std::fs::read_to_string(&conf).unwrap(), expected);
        assert_eq!(std::fs::read_to_string(root.join("calls")).unwrap(), "mkinitcpio -P\n");
        assert!(root.join("etc/mkinitcpio.conf.before-omnivisor").exists());
    }

    #[test]
    fn dracut_writes_the_image_that_the_menu_has() {
        let images = [
            ("1.0-deb", "initrd.img-1.0-deb"),
            ("2.0", "initramfs-2.0.img"),
            ("3.0", "initrd-3.0"),
        ];
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        program(root, "dracut");
        std::fs::create_dir_all(root.join("etc/dracut.conf.d")).unwrap();
        std::fs::create_dir(root.join("boot")).unwrap();
        for version in images.map(|(version, _)| version).into_iter().chain(["4.0"]) {
            std::fs::create_dir_all(root.join("lib/modules").join(version)).unwrap();
            std::fs::write(root.join("lib/modules").join(version).join("modules.dep"), "").unwrap();
        }
        for (_, image) in images {
            std::fs::write(root.join("boot").join(image), "").unwrap();
        }
        let talk = in_root(root, INITRAMFS);
        assert!(!talk.contains("failed"), "{talk}");
        let boot = root.join("boot").display().to_string();
        let mut calls: Vec<_> = images
            .iter()
            .map(|(version, image)| format!("dracut --force {boot}/{image} {version}\n"))
            .collect();
        calls.push("dracut --force --kver 4.0\n".into());
        assert_eq!(std::fs::read_to_string(root.join("calls")).unwrap(), calls.concat());
        let conf = std::fs::read_to_string(root.join("etc/dracut.conf.d/omnivisor.conf")).unwrap();
        assert!(conf.contains(" virtio_blk "), "{conf}");
    }

    /// The guest's own `setfiles`, with a policy of two lines.
    #[test]
    fn what_is_made_is_labelled_as_selinux_wants_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let contexts = root.join("etc/selinux/targeted/contexts/files");
        for made in [&contexts, &root.join("boot"), &root.join("var")] {
            std::fs::create_dir_all(made).unwrap();
        }
        let config = |mode: &str| {
            let text = format!("# Comment\nSELINUX={mode}\nSELINUXTYPE=targeted\n");
            std::fs::write(root.join("etc/selinux/config"), text).unwrap();
        };
        let policy = |kind: &str| {
            let here = root.display();
            let text =
                format!("{here}/etc/.* system_u:object_r:{kind}:s0\n{here}/etc/old <<none>>\n");
            std::fs::write(contexts.join("file_contexts"), text).unwrap();
        };
        let label = |file: &str| {
            let arguments = ["--only-values", "-n", "security.selinux"];
            let file = root.join("etc").join(file);
            let output = Command::new("getfattr").args(arguments).arg(file).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim_end_matches('\0').to_owned()
        };
        let step = format!("echo new >{}/etc/new; label", root.display());

        config("disabled");
        policy("etc_t");
        std::fs::write(root.join("etc/before"), "").unwrap();
        assert_eq!(in_root(root, &step), "");
        assert_eq!(label("new"), "");

        config("enforcing");
        assert_eq!(in_root(root, &step), "omnivisor: labelled what was changed, for SELinux\n");
        assert_eq!(label("new"), "system_u:object_r:etc_t:s0");
        assert_eq!(label("before"), "");
        assert!(!root.join(".autorelabel").exists());

        config("permissive");
        std::fs::remove_file(contexts.join("file_contexts")).unwrap();
        let talk = in_root(root, &step);
        assert!(talk.contains("labels its files anew at its next start"), "{talk}");
        assert!(root.join(".autorelabel").exists());
    }

    #[test]
    fn names_that_could_do_harm_reach_no_shell() {
        for (name, uuid) in [
            ("/dev/sda2;reboot", "12-ab"),
            ("/dev/sda2", "$(reboot)"),
            ("UUID=1", "1"),
            ("/dev/sdb1", "1"),
        ] {
            assert!(Changes::of(&report(name, uuid), &[], &[], false).is_empty(), "{name} {uuid}");
        }
    }
}
