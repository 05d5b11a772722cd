//! Programs of the host's distribution in a guest on the software processor: interpreters, a compiler, and
//! cryptography that checks itself.

use std::path::Path;
use std::process::{Command, Stdio};

/// Enters the host's root, which is shared with the guest, with folders of its own where programs write.
const ENTER: &str =
    "cd /mnt/hostroot; mount -t tmpfs t tmp; mount -t proc p proc; mount --bind /dev dev
    export PATH=/usr/bin:/bin LC_ALL=C; exec chroot . sh -c \"$1\" sh";

/// What each program prints must be what it prints here.
const SCRIPTS: [(&str, &str); 4] = [
    (
        "python3",
        r#"python3 -c '
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
        r#"cd /tmp && cat >sum.c <<'END'
#include <math.h>
#include <stdio.h>
int main(void) {
    double sum = 0;
    long double product = 1;
    for (int i = 1; i < 20000; i++) { sum += sin(i) / i; product *= 1 + 1.0L / i; }
    return printf("%.15f %.15Lf\n", sum, product) < 0;
}
END
gcc -O2 sum.c -o sum -lm && ./sum"#,
    ),
    (
        "openssl",
        "for sum in md5 sha1 sha256 sha512 sha3-256 blake2b512; do
    head -c 100000 /bin/sh | openssl dgst -$sum
done
head -c 9999 /bin/sh | openssl enc -aes-256-ctr -K 00112233 -iv 44556677 2>/dev/null | openssl dgst -sha256",
    ),
];

#[test]
fn programs_compute_in_a_guest_what_they_compute_here() {
    let has = |program: &str| Path::new("/usr/bin").join(program).exists();
    let scripts: Vec<_> = SCRIPTS.iter().filter(|(program, _)| has(program)).collect();
    if !["apt-get", "dpkg-deb", "busybox", "cpio"].into_iter().all(has) || scripts.is_empty() {
        assert!(std::env::var_os("CI").is_none(), "what images are made with is not installed");
        eprintln!("skipped: what images are made with is not installed");
        return;
    }
    let all: Vec<_> = scripts.iter().map(|(_, script)| *script).collect();
    let script = all.join("\n");
    let here = Command::new("sh")
        .args(["-c", &script])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(here.status.success(), "{here:?}");
    let there = Command::new(env!("CARGO_BIN_EXE_omnivisor"))
        .args(["run", "--engine", "soft", "--net", "none", "--memory", "1G"])
        .args(["--share", "/:hostroot,readonly", "debian", "--", "sh", "-c", ENTER, "sh", &script])
        .env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(text(&there.stdout), text(&here.stdout), "{}", text(&there.stderr));
}
