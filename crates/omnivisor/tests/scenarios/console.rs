//! Commands, kernels and the console of a guest.

use super::harness::Scenarios;

/// Commands in the guest: streams and exit codes.
pub fn commands() -> Scenarios {
    Scenarios::default()
        .prepare(&["--net", "none", "debian", "--", "true"])
        .scenario(
            "a command prints its output alone, and 0 is 0",
            r#"code 0 run debian -- uname -r >output
               grep -qE '^[0-9.]+-.*cloud-amd64$' output; same "$(wc -l <output)" 1
               [ ! -s err ] || fail 'something is on stderr'"#,
        )
        .scenario("false is 1", "code 1 run debian -- false")
        .scenario(
            "a command that a signal ends has the shell's exit code",
            "code 137 run debian -- sh -c 'kill -9 $$'",
        )
        .scenario("a command that is not there is 127", "code 127 run debian -- no-such-program")
        .scenario(
            "a script on standard input is read by the guest's shell",
            "echo 'echo $((6 * 7)); exit 5' | code 5 run debian >output; same \"$(cat output)\" 42",
        )
        .scenario(
            "input, output and errors stream",
            r#"head -c 300000 /dev/urandom >input
               code 3 run debian -- sh -c 'tee /dev/stderr; exit 3' <input >output
               cmp input output; cmp input err"#,
        )
}

/// Kernels, packed and unpacked, and several processors.
pub fn kernels() -> Scenarios {
    Scenarios::default()
        .prepare(&["--net", "none", "debian", "--", "true"])
        .prepare(&["--net", "none", "debian"])
        .prepare(&["--net", "none", "debian:6.12", "--", "true"])
        .prepare(&["--net", "none", "debian:6.12"])
        .scenario(
            "6.1 on two processors, which reads who it is",
            r#"uuid=123e4567-e89b-12d3-a456-426614174000
               code 0 run --cpus 2 --memory 256M --smbios "$uuid,serial=A-1" debian -- \
                   sh -c 'uname -r; nproc; cat /sys/class/dmi/id/product_uuid /sys/class/dmi/id/product_serial' >output
               grep -q '^6\.1\.' output; same "$(tail -n 3 output)" "2
$uuid
A-1"
               code 2 run --smbios web debian; says 'is not a UUID' err"#,
        )
        .scenario(
            "6.12 on two processors",
            r#"code 0 run --cpus 2 --memory 256M debian:6.12 -- sh -c 'uname -r; nproc' >output
               grep -q '^6\.12\.' output; same "$(tail -n 1 output)" 2"#,
        )
        .scenario(
            "a bzImage of 6.1 described in a file, with a shell on its console",
            r#"kernel=$(ls -t $XDG_CACHE_HOME/omnivisor/v1/kernel-linux-image-6.1.*/vmlinuz | head -n 1)
               description debian | sed "s|^kernel = .*|kernel = \"$kernel\"|" >vm.toml
               says '/vmlinuz"' vm.toml
               echo 'uname -r; exit' | omnivisor run --config vm.toml >output
               grep -q '^6\.1\.' output"#,
        )
        .scenario(
            "a bzImage of 6.12 described in a file, with a shell on its console",
            r#"kernel=$(ls -t $XDG_CACHE_HOME/omnivisor/v1/kernel-linux-image-6.12.*/vmlinuz | head -n 1)
               description debian:6.12 | sed "s|^kernel = .*|kernel = \"$kernel\"|" >vm.toml
               says '/vmlinuz"' vm.toml
               echo 'uname -r; exit' | omnivisor run --config vm.toml >output
               grep -q '^6\.12\.' output"#,
        )
        .scenario(
            "a command with a kernel and files of one's own",
            r#"kernel=$(ls -t $XDG_CACHE_HOME/omnivisor/v1/kernel-linux-image-6.1.*/vmlinuz | head -n 1)
               echo mine >note; echo note | cpio --quiet -o -H newc >own.cpio
               code 7 run --kernel "$kernel" --initrd own.cpio -- sh -c 'cat /note; exit 7' >output
               same "$(cat output)" mine"#,
        )
}

/// The console: reboot, power-off, and how it is left.
pub fn console() -> Scenarios {
    Scenarios::default()
        .prepare(&["--net", "none", "debian"])
        .scenario(
            "a reboot starts the guest again, and power-off ends it",
            r#"description debian >vm.toml
               mkfifo in; omnivisor run --config vm.toml <in >output 2>err & exec 4>in
               echo 'echo first-$((1 + 1)); reboot -f' >&4
               within 120 grep -q first-2 output
               i=0
               until grep -q second-4 output; do
                   i=$((i + 1)); [ $i -lt 120 ] || fail "$(cat output err)"
                   echo 'echo second-$((2 + 2))' >&4; sleep 1
               done
               echo 'poweroff -f' >&4
               wait $! || fail "exit code $?: $(cat output err)""#,
        )
        .scenario(
            "with --no-reboot, a reboot ends it",
            "description debian >vm.toml
             echo 'reboot -f' | omnivisor run --no-reboot --config vm.toml >output",
        )
        .scenario(
            "leaving by keys and by signals restores the terminal",
            r#"cat >job <<'EOF'
stty -a >before
"$OMNIVISOR" run --engine $ENGINE --net none debian; echo "code $?" >code
stty -a >after
EOF
               # leaves NAME: what follows on stdin is typed; the machine runs under a terminal.
               leaves() {
                   rm -f in before after code typescript; mkfifo in
                   script -qfec 'sh job' typescript <in >/dev/null 2>&1 & terminal=$!
                   exec 4>in
                   within 120 grep -qF 'leave with Ctrl-]' typescript
                   echo 'echo shell-$((5 + 5))' >&4
                   within 120 grep -q shell-10 typescript
                   stty=$(stty -F /proc/$(pgrep -n -f "^$OMNIVISOR run")/fd/0 -a)
                   case $stty in *' -icanon '*) ;; *) fail "not raw: $stty" ;; esac
                   "$@"
                   within 60 test -s code; within 60 test -s after
                   exec 4>&-; wait $terminal || true
                   diff before after >&3 || fail "$1: the terminal is not restored"
                   cat code >&3
               }
               bracket() { printf '\035' >&4; }
               prefix() { printf '\001x' >&4; }
               # The first asks the guest to switch itself off, which this one does not do.
               signal() {
                   vmm=$(pgrep -n -f "^$OMNIVISOR run")
                   kill -TERM $vmm; sleep 1; kill -TERM $vmm 2>/dev/null || true
               }
               leaves bracket; leaves prefix; leaves signal"#,
        )
}
