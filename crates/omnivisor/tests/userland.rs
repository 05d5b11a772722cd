//! A full Debian on the software processor, from systemd to a login prompt, and what it computes: interpreters,
//! a compiler, cryptography, and programs of Go and Rust, beside the same on this computer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// In a busy computer.
const DEADLINE: Duration = Duration::from_secs(400);

/// In the guest: enters this computer's root, with folders of its own where programs write. The work is in /mnt.
const ENTER: &str = "
    set -e
    cat /proc/1/comm >/run/files/init
    systemctl is-active multi-user.target getty.target serial-getty@ttyS0.service >/run/files/units
    cd /run/host
    mount -t tmpfs none tmp; mount -t proc none proc; mount --rbind /dev dev; mount --bind /run/files mnt
    chroot . sh /mnt/script >/run/files/there 2>/run/files/errors";

/// What each program prints must be what it prints here.
const SCRIPTS: [(&str, &str); 6] = [
    (
        "python3",
        r#"/usr/bin/python3 -c '
import decimal, hashlib, json, math, re
print(math.sin(1.0), 2**200, sum(i * i for i in range(20000)))
print(hashlib.sha256(b"x" * 100000).hexdigest(), decimal.Decimal(2).sqrt())
print(json.dumps({"a": [1.5e300, 2, None]}), re.sub(r"(\w+) (\w+)", r"\2 \1", "one two"))'"#,
    ),
    (
        "perl",
        r#"perl -e 'my %h; $h{$_ % 97} += sqrt($_) for 1 .. 20000;
printf "%.9f %s\n", $h{5}, join ",", map { sprintf "%.6e", exp($_) } 1 .. 9'"#,
    ),
    (
        "gcc",
        r#"folder=$(mktemp -d); cat >$folder/sum.c <<'END'
#include <math.h>
#include <stdio.h>
int main(void) {
    double sum = 0;
    long double product = 1;
    for (int i = 1; i < 20000; i++) { sum += sin(i) / i; product *= 1 + 1.0L / i; }
    return printf("%.15f %.15Lf\n", sum, product) < 0;
}
END
gcc -O2 $folder/sum.c -o $folder/sum -lm && $folder/sum; rm -r $folder"#,
    ),
    (
        "openssl",
        "for sum in md5 sha1 sha256 sha512 sha3-256 blake2b512; do
    head -c 100000 /bin/sh | openssl dgst -$sum
done
head -c 9999 /bin/sh | openssl enc -aes-256-ctr -K 00112233 -iv 44556677 2>/dev/null | openssl dgst -sha256
openssl speed -seconds 1 -bytes 64 sha256 >/dev/null 2>&1 && echo measured",
    ),
    ("go", "/mnt/sum-go"),
    ("rustc", "/mnt/sum-rust"),
];

const GO: &str = r#"package main

import (
	"crypto/sha256"
	"fmt"
	"math"
	"sort"
	"strings"
	"sync"
)

func main() {
	var wait sync.WaitGroup
	sums := make([]string, 8)
	for n := range sums {
		wait.Add(1)
		go func(n int) {
			defer wait.Done()
			data := []byte(strings.Repeat("go", n*1000))
			sums[n] = fmt.Sprintf("%x %.9f", sha256.Sum256(data), math.Sin(float64(n)))
		}(n)
	}
	wait.Wait()
	sort.Strings(sums)
	fmt.Println(strings.Join(sums, "\n"))
}
"#;

const RUST: &str = r#"fn main() {
    let threads: Vec<_> = (1..5_u64)
        .map(|n| {
            std::thread::spawn(move || {
                let mut map = std::collections::BTreeMap::new();
                for i in 0..20_000_u64 {
                    *map.entry(i * n * 2_654_435_761 % 997).or_insert(0.0) += (i as f64).sqrt();
                }
                map.into_iter().map(|(key, sum)| key as f64 * sum).sum::<f64>()
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| println!("{:.6}", thread.join().unwrap()));
}
"#;

#[test]
fn a_full_debian_starts_and_its_programs_compute_what_they_compute_here() {
    let needed = ["apt-get", "dpkg-deb", "busybox", "cpio", "mmdebstrap", "script"];
    let programs = SCRIPTS.iter().map(|(program, _)| *program);
    let absent = needed.into_iter().chain(programs).find(|program| find(program).is_none());
    if let Some(program) = absent {
        assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
        eprintln!("skipped: {program} is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("work");
    fs::create_dir(&work).unwrap();
    build(&work);
    let scripts: Vec<_> = SCRIPTS.iter().map(|(_, script)| *script).collect();
    let script = format!("export PATH=/usr/bin:/bin LC_ALL=C\n{}\n", scripts.join("\n"));
    fs::write(work.join("script"), &script).unwrap();
    fs::write(work.join("enter"), ENTER).unwrap();
    let here = script.replace("/mnt/", &format!("{}/", work.display()));
    let here = Command::new("sh").args(["-c", &here]).stdin(Stdio::null()).output().unwrap();
    assert!(here.status.success(), "{here:?}");

    let console = boot(folder.path(), &work);
    let read = |name: &str| fs::read_to_string(work.join(name)).unwrap_or_default();
    assert_eq!(read("init"), "systemd\n", "{console}");
    assert_eq!(read("units"), "active\n".repeat(3), "{console}");
    let here = String::from_utf8_lossy(&here.stdout);
    assert_eq!(read("there"), here, "{}\n{console}", read("errors"));
}

/// Runs the machine to its end; what was on its console.
fn boot(folder: &Path, work: &Path) -> String {
    let log = folder.join("console");
    // The machine's shell is on its console only where there is a terminal.
    let command = format!(
        "exec '{}' run --engine soft --net none --memory 1G --disk-size 3G --name userland \
         --share /:host,readonly --share '{}:work' debian",
        env!("CARGO_BIN_EXE_omnivisor"),
        work.display()
    );
    let mut terminal = Command::new("script")
        .args(["-qfec", &command])
        .arg(&log)
        .env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"))
        .env("XDG_STATE_HOME", folder.join("state"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let shown = || String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
    let mut keyboard = terminal.stdin.take().unwrap();
    let mut typed = false;
    while terminal.try_wait().unwrap().is_none() {
        let console = shown();
        if !typed && console.contains("debian login:") && console.contains(":~# ") {
            typed = true;
            let line = "mkdir /run/host /run/files; mount -t virtiofs -o ro host /run/host; \
                        mount -t virtiofs work /run/files; sh /run/files/enter; systemctl poweroff\n";
            std::io::Write::write_all(&mut keyboard, line.as_bytes()).unwrap();
        }
        if begun.elapsed() > DEADLINE {
            let _ = terminal.kill();
            let _ = terminal.wait();
            panic!("it never ended: {console}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    shown()
}

/// The programs of Go and Rust.
fn build(work: &Path) {
    fs::write(work.join("sum.go"), GO).unwrap();
    fs::write(work.join("sum.rs"), RUST).unwrap();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go");
    let go = ["build", "-o", "sum-go", "sum.go"];
    let rust = ["-O", "--edition", "2024", "-o", "sum-rust", "sum.rs"];
    for (program, arguments) in [("go", &go[..]), ("rustc", &rust)] {
        let built = Command::new(program)
            .args(arguments)
            .current_dir(work)
            .env("GOCACHE", &cache)
            .output()
            .unwrap();
        assert!(built.status.success(), "{built:?}");
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}
