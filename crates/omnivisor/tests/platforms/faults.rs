//! Platforms that stand still, die in the middle, or answer slowly: one sentence each, in time.

use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::session::Session;
use crate::sshd::Sshd;

/// The daemon of a session.
struct Daemon(String);

impl Daemon {
    fn of(session: &Session) -> Self {
        let pid = std::fs::read_to_string(session.path("run/libvirt/libvirtd.pid")).unwrap();
        Self(pid.trim().to_owned())
    }

    fn send(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.0]).status().unwrap().success());
    }
}

/// The one sentence that was said of one failure.
fn sentence(talk: &str) -> &str {
    assert_eq!(talk.matches("  x ").count(), 1, "{talk}");
    talk
}

#[test]
fn a_libvirtd_that_stands_still_or_is_killed_in_the_middle_is_one_sentence() {
    let session = Session::new();
    session.define();
    session.expect(&["list", "qemu:///session"]);
    let daemon = Daemon::of(&session);
    daemon.send("-STOP");
    let begin = Instant::now();
    for arguments in [&["list", "qemu:///session"][..], &["stop", "qemu:///session/web 1"]] {
        let (code, _, talk) = session.run(&[arguments, &["--timeout", "2"]].concat());
        assert!(code == 125 && sentence(&talk).contains("did not answer within 2 s"), "{talk}");
    }
    assert!(begin.elapsed() < Duration::from_secs(60));
    // Another platform is listed all the same.
    let (code, list, talk) =
        session.run(&["list", "--timeout", "10", "qemu:///session", "test:///default"]);
    assert!(code == 125 && list.contains("test  running"), "{list}{talk}");

    let listing = |program: &mut Command| {
        let arguments = ["list", "--timeout", "60", "qemu:///session"];
        let command = program.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let asked = listing(&mut session.command(session.path("omnivisor").to_str().unwrap()));
    // So long that virsh waits for its answer.
    thread::sleep(Duration::from_secs(1));
    daemon.send("-KILL");
    let Output { status, stderr, .. } = asked.wait_with_output().unwrap();
    let talk = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(125), "{talk}");
    assert!(sentence(&talk).contains("Cannot talk to qemu:///session"), "{talk}");
    // The next one starts another daemon.
    assert_eq!(session.state(), "stopped");
}

#[test]
fn a_program_that_is_slow_on_another_computer_is_one_sentence() {
    let sshd = Sshd::new();
    sshd.add_program("virsh", "exec sleep 100\n");
    let uri = format!("libvirt+ssh://127.0.0.1:{}/session", sshd.port);
    let begin = Instant::now();
    let (code, _, talk) = sshd.run(&["list", "--timeout", "2", &uri]);
    assert!(code == 125 && sentence(&talk).contains("did not answer within 2 s"), "{talk}");
    // One that never stops talking.
    sshd.add_program("virsh", "exec yes web\n");
    let (code, _, talk) = sshd.run(&["list", "--timeout", "30", &uri]);
    assert!(code == 125 && sentence(&talk).contains("answers more than"), "{talk}");
    assert!(begin.elapsed() < Duration::from_secs(60));
}
