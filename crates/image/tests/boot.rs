//! Debian's kernels with our initramfs, fetched through apt and booted in QEMU's software CPU: slow, but everywhere.

use agent::{Client, Exec, Exit, Streams, Window};
use image::{Cache, Features, HOST_ROOT_TAG, ImageRef, Options, Prepared, copy_disk, prepare_in};
use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything in a guest may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(240);
const PORT_NAME: &str = "org.omnivisor.test";

/// Whether the host cannot run these tests; says why.
fn missing() -> bool {
    let absent = ["apt-get", "dpkg-deb", "qemu-system-x86_64"].into_iter().find(|program| {
        Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err()
    });
    if let Some(program) = absent {
        eprintln!("skipped: {program} is not installed");
    }
    absent.is_some()
}

/// Kept between runs, so that packages are fetched once; the program's tests have the same.
fn cache() -> Cache {
    Cache::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache/omnivisor")).unwrap()
}

fn prepared(image: &str, features: Features) -> Prepared {
    prepared_with(image, Options { features, full_root: false })
}

fn prepared_with(image: &str, options: Options) -> Prepared {
    let image: ImageRef = image.parse().unwrap();
    let prepared = prepare_in(&cache(), &image, &options, &|line| eprintln!("{line}")).unwrap();
    // The second time everything is there.
    let again = prepare_in(&cache(), &image, &options, &|line| panic!("{line} again")).unwrap();
    assert_eq!(prepared, again);
    prepared
}

/// A QEMU that is killed when the test ends.
struct Guest {
    qemu: Child,
    folder: tempfile::TempDir,
}

impl Guest {
    fn start(prepared: &Prepared, cmdline: &str, with: impl FnOnce(&Path, &mut Command)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        let machine =
            "-accel tcg -M q35 -m 256M -nodefaults -no-user-config -no-reboot -display none";
        command.args(machine.split(' '));
        command.arg("-kernel").arg(&prepared.kernel).arg("-initrd").arg(&prepared.initrd);
        let cmdline = format!("console=ttyS0 quiet panic=-1 {} {cmdline}", prepared.cmdline_extra);
        command.args(["-append", &cmdline]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        with(folder.path(), &mut command);
        Self { qemu: command.spawn().unwrap(), folder }
    }

    /// One whose console is written to a file.
    fn unattended(prepared: &Prepared, cmdline: &str, arguments: &[&str]) -> Self {
        Self::start(prepared, cmdline, |folder, qemu| {
            qemu.arg("-serial")
                .arg(format!("file:{}", folder.join("serial").display()))
                .args(arguments);
        })
    }

    /// One whose agent is reached over a virtio-console port: PID 1's, or with the command line `systemd` its service.
    fn with_port(prepared: &Prepared, cmdline: &str, arguments: &[&str]) -> (Self, Client) {
        let cmdline = match cmdline {
            "systemd" => format!("omnivisor.serve=port:{PORT_NAME}"),
            _ => format!("omnivisor.agent=port:{PORT_NAME} {cmdline}"),
        };
        let mut guest = Self::start(prepared, &cmdline, |folder, qemu| {
            qemu.arg("-serial").arg(format!("file:{}", folder.join("serial").display()));
            qemu.args(["-device", "virtio-serial-pci", "-chardev"]);
            qemu.arg(format!(
                "socket,id=agent,path={},server=on,wait=off",
                folder.join("agent").display()
            ));
            qemu.args(["-device", &format!("virtserialport,chardev=agent,name={PORT_NAME}")]);
            qemu.args(arguments);
        });
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(guest.folder.path().join("agent")) {
                Ok(stream) => break stream,
                Err(error) => assert!(start.elapsed() < DEADLINE, "{error}"),
            }
            if let Some(status) = guest.qemu.try_wait().unwrap() {
                panic!("QEMU ended, {status}: {}", guest.console());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        match Client::from_stream(stream) {
            Ok(client) => (guest, client),
            Err(error) => panic!("{error:?}; the guest's console says: {}", guest.console()),
        }
    }

    fn console(&self) -> String {
        let bytes = std::fs::read(self.folder.path().join("serial")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn wait_for_power_off(&mut self) {
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            if let Some(status) = self.qemu.try_wait().unwrap() {
                return assert!(status.success());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the guest did not switch itself off: {}", self.console());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// A guest's console with somebody in front of it.
struct Terminal {
    guest: Guest,
    screen: BufReader<ChildStdout>,
    keyboard: ChildStdin,
}

impl Terminal {
    fn start(prepared: &Prepared, cmdline: &str) -> Self {
        let mut guest = Guest::start(prepared, cmdline, |_, qemu| {
            qemu.args(["-serial", "stdio"]);
        });
        let screen = BufReader::new(guest.qemu.stdout.take().unwrap());
        let keyboard = guest.qemu.stdin.take().unwrap();
        Self { guest, screen, keyboard }
    }

    fn expect(&mut self, text: &str) {
        let mut seen = String::new();
        let mut byte = [0];
        while !seen.contains(text) {
            assert_eq!(self.screen.read(&mut byte).unwrap(), 1, "the console ended: {seen}");
            seen.push(byte[0].into());
        }
    }

    fn enter(&mut self, line: &str) {
        self.keyboard.write_all(line.as_bytes()).unwrap();
        self.keyboard.write_all(b"\n").unwrap();
    }
}

fn sh(client: &mut Client, script: &str) -> (Exit, String) {
    run(
        client,
        &Exec { argv: ["sh", "-c", script].map(Into::into).into(), ..Exec::default() },
        None,
    )
}

fn run(client: &mut Client, exec: &Exec, stdin: Option<Box<dyn Read + Send>>) -> (Exit, String) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let exit =
        client.run(exec, Streams { stdin, stdout: &mut stdout, stderr: &mut stderr }).unwrap();
    eprint!("{}", String::from_utf8_lossy(&stderr));
    (exit, String::from_utf8(stdout).unwrap())
}

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part} in: {text}");
    }
}

#[test]
fn a_bare_guest_gives_a_shell_on_its_console_and_switches_off_after_it() {
    if missing() {
        return;
    }
    let prepared = prepared("debian", Features::default());
    let mut terminal =
        Terminal::start(&prepared, "omnivisor.window=100x30 omnivisor.hostname=bare");
    terminal.expect("bare:~# ");
    terminal.enter("echo kernel $(uname -r) size $(stty size) $(tty)");
    terminal.expect(&format!("kernel {} size 30 100 /dev/ttyS0", prepared.version));
    // Job control: the shell has its terminal, so Ctrl-C ends the command and not the shell.
    terminal.enter("echo started; sleep 100000");
    terminal.expect("started\r\n");
    terminal.keyboard.write_all(b"\x03").unwrap();
    terminal.expect("bare:~# ");
    // The orphan's parent ends first, and PID 1 reaps it.
    terminal.enter(
        "(sleep 0.1 & ); sleep 0.5; echo zombies: $(cat /proc/[0-9]*/status | grep -c 'State:.Z')",
    );
    terminal.expect("zombies: 0");
    terminal.enter("exit");
    terminal.guest.wait_for_power_off();
}

#[test]
fn the_shells_poweroff_works() {
    if missing() {
        return;
    }
    let mut terminal = Terminal::start(&prepared("debian", Features::default()), "");
    terminal.expect(":~# ");
    terminal.enter("poweroff");
    terminal.guest.wait_for_power_off();
}

#[test]
fn commands_run_in_a_guest_with_every_driver() {
    if missing() {
        return;
    }
    let prepared = prepared("debian", Features::all());
    let devices =
        ["-device", "virtio-net-pci,netdev=n", "-netdev", "user,id=n", "-device", "virtio-rng-pci"];
    let (mut guest, mut client) = Guest::with_port(&prepared, "", &devices);
    assert_eq!(client.hello().kernel, prepared.version);
    assert_eq!(sh(&mut client, "uname -r"), (Exit::Code(0), format!("{}\n", prepared.version)));
    assert_eq!(sh(&mut client, "false").0, Exit::Code(1));
    assert_eq!(sh(&mut client, "kill -15 $$").0, Exit::Signal(15));
    let (exit, _) =
        run(&mut client, &Exec { argv: vec!["no-such".into()], ..Exec::default() }, None);
    assert_eq!(exit, Exit::Code(127));
    let data = "0123456789abcdef".repeat(20_000);
    let cat = Exec { argv: vec!["cat".into()], ..Exec::default() };
    let (_, echoed) = run(&mut client, &cat, Some(Box::new(std::io::Cursor::new(data.clone()))));
    assert!(echoed == data, "{} of {} bytes came back", echoed.len(), data.len());
    let tty = Some(Window { rows: 5, cols: 60 });
    let stty = Exec { argv: ["stty", "size"].map(Into::into).into(), tty, ..Exec::default() };
    assert_eq!(run(&mut client, &stty, None), (Exit::Code(0), "5 60\r\n".into()));
    // What DHCP gave.
    let (_, addresses) = sh(&mut client, "ip -4 -o addr; ip route; cat /etc/resolv.conf");
    let given =
        ["127.0.0.1/8", "10.0.2.15/24", "default via 10.0.2.2 dev eth0", "nameserver 10.0.2.3"];
    assert_contains(&addresses, &given);
    let (_, modules) =
        sh(&mut client, "lsmod; find /lib/modules -name '*.ko'; cat /proc/filesystems");
    // Without signatures: the kernel says so by its taint flag 8192, and loads them.
    assert_eq!(sh(&mut client, "cat /proc/sys/kernel/tainted").1, "8192\n");
    let drivers = ["virtio_blk", "virtio_net", "virtio_balloon", "virtio_rng", "vmw_vsock"];
    assert_contains(&modules, &drivers);
    assert_contains(&modules, &["virtiofs", "overlay", "ext4"]);
    // Their files are removed once they are loaded.
    assert!(!modules.contains(".ko"), "{modules}");
    client.control().power_off().unwrap();
    guest.wait_for_power_off();
    assert!(!guest.console().contains("omnivisor:"), "{}", guest.console());
}

#[test]
fn another_kernel_version_and_a_static_address() {
    if missing() {
        return;
    }
    let known =
        Command::new("apt-cache").args(["show", "linux-image-6.12-cloud-amd64"]).output().unwrap();
    if !known.status.success() {
        eprintln!("skipped: apt has no linux-image-6.12-cloud-amd64");
        return;
    }
    let features = Features { console: true, net: true, ..Features::default() };
    let prepared = prepared("debian:6.12", features);
    assert!(prepared.version.starts_with("6.12."), "{}", prepared.version);
    let cmdline =
        "omnivisor.ip=10.0.2.77/24,gw=10.0.2.2,dns=10.0.2.3,mtu=1400 omnivisor.ip=fd00::5/64";
    let devices = ["-device", "virtio-net-pci,netdev=n", "-netdev", "user,id=n"];
    let (mut guest, mut client) = Guest::with_port(&prepared, cmdline, &devices);
    assert_eq!(sh(&mut client, "uname -r").1, format!("{}\n", prepared.version));
    let (_, addresses) =
        sh(&mut client, "ip -o addr; ip link show eth0; ip route; cat /etc/resolv.conf");
    assert_contains(
        &addresses,
        &["10.0.2.77/24", "fd00::5/64", "mtu 1400", "default via 10.0.2.2 dev eth0"],
    );
    assert_contains(&addresses, &["nameserver 10.0.2.3"]);
    // Losing the host is the end of the guest.
    drop(client);
    guest.wait_for_power_off();
}

#[test]
fn a_guest_runs_commands_in_the_root_on_its_disk() {
    if missing() {
        return;
    }
    let features = Features { console: true, blk: true, overlay: true, ..Features::default() };
    let prepared = prepared("debian", features);
    let folder = tempfile::tempdir().unwrap();
    let disk = small_root(folder.path());
    let drive = format!("file={},format=raw,if=none,id=d", disk.display());
    let devices = ["-drive", &drive, "-device", "virtio-blk-pci,drive=d"];
    let script = "cat /etc/mark; touch /root/new; ls /root; ls /dev/vda; grep ' / ' /proc/mounts | tail -n 1";

    let (mut guest, mut client) =
        Guest::with_port(&prepared, "root=/dev/vda omnivisor.overlay", &devices);
    let (_, output) = sh(&mut client, script);
    assert!(output.starts_with("the disk's root\nnew\n/dev/vda\noverlay / overlay"), "{output}");
    client.control().power_off().unwrap();
    guest.wait_for_power_off();

    // Nothing of that is on the disk; now something is.
    let (mut guest, mut client) = Guest::with_port(&prepared, "root=LABEL=vmroot rw", &devices);
    assert_eq!(sh(&mut client, "ls /root").1, "");
    let (_, output) = sh(&mut client, script);
    assert!(output.starts_with("the disk's root\nnew\n/dev/vda\n/dev/vda / ext4 rw"), "{output}");
    client.control().power_off().unwrap();
    guest.wait_for_power_off();
    let state = Command::new("dumpe2fs").arg("-h").arg(&disk).output().unwrap();
    let state = String::from_utf8_lossy(&state.stdout).into_owned();
    assert!(
        state.contains("Filesystem state:         clean") && !state.contains("needs_recovery"),
        "{state}"
    );

    // Without an agent, the root's own init is started.
    let mut guest = Guest::unattended(&prepared, "root=/dev/vda ro init=/sbin/own-init", &devices);
    guest.wait_for_power_off();
    assert!(guest.console().contains("own init is 1, found new"), "{}", guest.console());
}

#[test]
fn a_root_that_is_not_there_is_said_and_ends_the_guest() {
    if missing() {
        return;
    }
    let prepared = prepared("debian", Features { blk: true, ..Features::default() });
    let mut guest = Guest::unattended(&prepared, "root=/dev/vdz", &[]);
    guest.wait_for_power_off();
    assert_contains(&guest.console(), &["omnivisor: The root device /dev/vdz did not appear"]);
}

#[test]
fn a_full_debian_boots_its_systemd_and_runs_commands() {
    if missing() {
        return;
    }
    if Command::new("mmdebstrap").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: mmdebstrap is not installed");
        return;
    }
    let features = Features { console: true, blk: true, net: true, ..Features::default() };
    let prepared = prepared_with("debian", Options { features, full_root: true });
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    copy_disk(prepared.disk.as_ref().unwrap(), &disk, 3 << 30).unwrap();
    let drive = format!("file={},format=raw,if=none,id=d", disk.display());
    let network = ["-device", "virtio-net-pci,netdev=n", "-netdev", "user,id=n"];
    let devices = [["-drive", &drive, "-device", "virtio-blk-pci,drive=d"], network].concat();

    // The agent as PID 1, in the root.
    let (mut guest, mut client) = Guest::with_port(&prepared, "", &devices);
    let (exit, output) =
        sh(&mut client, "cat /etc/debian_version; dpkg --version | head -n 1; touch /root/kept");
    assert_eq!(exit, Exit::Code(0), "{output}");
    assert_contains(&output, &["package management program"]);
    assert_eq!(sh(&mut client, "modprobe dummy && lsmod | grep -c ^dummy").1, "1\n");
    client.control().power_off().unwrap();
    guest.wait_for_power_off();

    // systemd as PID 1, and the agent as one of its services.
    let (mut guest, mut client) = Guest::with_port(&prepared, "systemd", &devices);
    let (_, output) =
        sh(&mut client, "cat /proc/1/comm; ls /root; df --output=size -B G / | tail -n 1");
    assert_eq!(output.split_whitespace().collect::<Vec<_>>(), ["systemd", "kept", "3G"]);
    client.control().power_off().unwrap();
    guest.wait_for_power_off();
}

#[test]
fn the_hosts_root_is_shared_under_an_overlay() {
    // The one that comes with QEMU 7, or Debian's package of the later one.
    let programs = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
    let virtiofsd = programs.into_iter().find(|path| Path::new(path).exists());
    let Some(virtiofsd) = virtiofsd.filter(|_| !missing() && rustix::process::geteuid().is_root())
    else {
        eprintln!("skipped: this needs QEMU, virtiofsd and root");
        return;
    };
    let features = Features { console: true, fs: true, overlay: true, ..Features::default() };
    let prepared = prepared("debian", features);
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("shared")).unwrap();
    std::fs::write(folder.path().join("shared/from-host"), "hello\n").unwrap();
    let root = Daemon::start(virtiofsd, Path::new("/"), &folder.path().join("root.sock"));
    let share =
        Daemon::start(virtiofsd, &folder.path().join("shared"), &folder.path().join("share.sock"));
    let memory = "-object memory-backend-memfd,id=m,size=256M,share=on -numa node,memdev=m";
    let mut devices: Vec<String> = memory.split(' ').map(str::to_owned).collect();
    for (daemon, tag) in [(&root, HOST_ROOT_TAG), (&share, "src")] {
        devices.push("-chardev".into());
        devices.push(format!("socket,id={tag},path={}", daemon.socket.display()));
        devices.push("-device".into());
        devices.push(format!("vhost-user-fs-pci,chardev={tag},tag={tag}"));
    }
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    let cmdline =
        format!("omnivisor.root={HOST_ROOT_TAG} omnivisor.overlay omnivisor.share=src:/mnt/src");
    let (mut guest, mut client) = Guest::with_port(&prepared, &cmdline, &devices);

    let (_, release) = sh(&mut client, "cat /etc/os-release");
    assert_eq!(release, std::fs::read_to_string("/etc/os-release").unwrap());
    let mark = format!("/usr/omnivisor-test-{}", std::process::id());
    let script = format!(
        "uname -r; touch {mark} && ls {mark}; cat /mnt/src/from-host; echo hi > /mnt/src/from-guest"
    );
    let (_, output) = sh(&mut client, &script);
    assert_eq!(output, format!("{}\n{mark}\nhello\n", prepared.version));
    let tty = Some(Window { rows: 5, cols: 60 });
    let stty = Exec { argv: ["stty", "size"].map(Into::into).into(), tty, ..Exec::default() };
    assert_eq!(run(&mut client, &stty, None), (Exit::Code(0), "5 60\r\n".into()));
    client.control().power_off().unwrap();
    guest.wait_for_power_off();
    // The overlay kept the guest's writes from the host; the share did not.
    assert!(!Path::new(&mark).exists());
    assert_eq!(std::fs::read_to_string(folder.path().join("shared/from-guest")).unwrap(), "hi\n");
}

/// A virtiofsd that is killed when the test ends.
struct Daemon {
    process: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(program: &str, folder: &Path, socket: &Path) -> Self {
        let mut command = Command::new(program);
        if program.contains("libexec") {
            command.args(["--sandbox=chroot", "--shared-dir"]).arg(folder);
        } else {
            // Its other sandbox cannot share `/`.
            command.arg("-o").arg(format!("sandbox=chroot,source={}", folder.display()));
        }
        command.arg(format!("--socket-path={}", socket.display()));
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Self { process, socket: socket.to_owned() };
        let start = Instant::now();
        while !socket.exists() {
            assert!(start.elapsed() < DEADLINE, "virtiofsd does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An ext4 disk with busybox and a mark.
fn small_root(folder: &Path) -> PathBuf {
    let root = folder.join("root");
    for path in ["bin", "sbin", "etc", "root", "dev", "proc", "sys", "run", "tmp"] {
        std::fs::create_dir_all(root.join(path)).unwrap();
    }
    std::fs::write(root.join("etc/mark"), "the disk's root\n").unwrap();
    let init =
        "#!/bin/sh\necho own init is $$, found $(ls /root) >/dev/console\nexec poweroff -f\n";
    std::fs::write(root.join("sbin/own-init"), init).unwrap();
    assert!(
        Command::new("chmod")
            .arg("755")
            .arg(root.join("sbin/own-init"))
            .status()
            .unwrap()
            .success()
    );
    std::fs::copy(busybox(), root.join("bin/busybox")).unwrap();
    for name in ["sh", "ls", "cat", "touch", "grep", "poweroff", "tail"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    let disk = folder.join("disk");
    let mut command = Command::new("mke2fs");
    command
        .stdout(Stdio::null())
        .args(["-q", "-t", "ext4", "-L", "vmroot", "-d"])
        .arg(&root)
        .arg(&disk)
        .arg("64M");
    assert!(command.status().unwrap().success());
    disk
}

/// The busybox of the cache, which `prepared` has filled.
fn busybox() -> PathBuf {
    let entries = std::fs::read_dir(cache().path("")).unwrap().flatten();
    let programs = entries.map(|entry| entry.path().join("bin/busybox"));
    programs.into_iter().find(|path| path.exists()).unwrap()
}
