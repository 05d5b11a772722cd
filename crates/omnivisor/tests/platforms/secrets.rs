//! What others see of a password while a command runs.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::OMNIVISOR;
use crate::sshd::write_program;

const PASSWORD: &str = "open-sesame-4711";

/// All processes that began with this one.
fn family(of: u32) -> Vec<u32> {
    let mut found = vec![of];
    let mut at = 0;
    while at < found.len() {
        for entry in std::fs::read_dir("/proc").unwrap() {
            let Some(pid) = entry.unwrap().file_name().to_str().and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The name before it may hold anything.
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
            if parent == Some(&found[at].to_string()) && !found.contains(&pid) {
                found.push(pid);
            }
        }
        at += 1;
    }
    found
}

#[test]
fn a_password_is_in_no_process_list_and_no_other_programs_environment() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // Nobody comes back: a server that says nothing, a program here and one by ssh.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    for program in ["xl", "ssh"] {
        let script = format!("echo >{}\nsleep 100\n", path(&format!("{program}-runs")).display());
        write_program(&path(program), &script);
    }
    let esx = format!("esx://root@{}", server.local_addr().unwrap());
    let mut process = Command::new(OMNIVISOR)
        .args(["-vv", "list", "--timeout", "60", &esx, "xen:///", "xen+ssh://root@there"])
        .env("OMNIVISOR_PASSWORD", PASSWORD)
        .env("OMNIVISOR_SSH", path("ssh"))
        .env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _client = server.accept().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !(path("xl-runs").exists() && path("ssh-runs").exists()) {
        assert!(Instant::now() < deadline, "the programs do not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let family = family(process.id());
    let seen = |file: &str, of: &[u32]| {
        let read = |pid: &u32| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&of.iter().flat_map(read).collect::<Vec<_>>()).into_owned()
    };
    let (lines, others) = (seen("cmdline", &family), seen("environ", &family[1..]));
    for pid in family.iter().skip(1) {
        let _ = Command::new("kill").arg(pid.to_string()).status();
    }
    let _ = process.kill();
    let _ = process.wait();
    assert!(lines.contains(&esx) && lines.contains("sleep"), "{lines}");
    assert!(others.contains("LC_ALL=C.UTF-8"), "{others}");
    assert!(!lines.contains(PASSWORD), "{lines}");
    assert!(!others.contains(PASSWORD), "{others}");
}
