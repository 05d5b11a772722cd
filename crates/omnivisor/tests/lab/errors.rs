//! What the program says, and with which code it ends, when something is wrong.

use crate::harness::Lab;

#[test]
fn mistakes_are_told_in_a_sentence_and_have_their_exit_codes() {
    Lab::new(700)
        .prepare(&["--net", "none", "debian"])
        .scenario(
            "a kernel that is not one, or is not there",
            r#"echo 'not a kernel at all' >kernel
               code 126 run --kernel kernel; says 'not a kernel' err
               code 127 run --kernel nothing; says 'There is no kernel nothing' err"#,
        )
        .scenario(
            "an initrd too large for the memory",
            r#"vmlinux=$(run debian --dry-run | sed -n 's/^kernel = "\(.*\)"$/\1/p')
               truncate -s 200M initrd
               code 126 run --memory 128M --kernel "$vmlinux" --initrd initrd
               says 'give the guest more memory' err"#,
        )
        .scenario(
            "a tap interface that is missing",
            r#"code 126 omnivisor run --net tap=absent0 debian
               says absent0 err; says 'ip tuntap add' err"#,
        )
        .scenario(
            "a disk that is missing",
            "code 126 run --disk nothing.img debian; says nothing.img err",
        )
        .scenario(
            "an unknown key in a description",
            r#"echo 'memroy = "1G"' >vm.toml
               code 2 run --config vm.toml
               says memroy err; says memory err
               code 127 run --config nothing.toml"#,
        )
        .scenario("an unknown image", "code 127 run debain; says 'Unknown image' err")
        .scenario("nothing to boot", "code 2 omnivisor run; says 'There is nothing to boot' err")
        .scenario(
            "no permission for /dev/kvm",
            r#"chmod 600 /dev/kvm; chmod 755 .
               as_nobody() {
                   setpriv --reuid 65534 --regid 65534 --clear-groups timeout 60 "$OMNIVISOR" "$@"
               }
               run debian --dry-run | sed '/^\[\[nics/,$d' >vm.toml; chmod 644 vm.toml
               code 126 as_nobody run --engine kvm --net none --config vm.toml
               says 'may open /dev/kvm' err; says usermod err
               chmod 666 /dev/kvm"#,
        )
        .scenario(
            "no KVM at all",
            r#"mv /dev/kvm /dev/hidden
               code 126 run --engine kvm debian; says 'There is no /dev/kvm' err
               mv /dev/hidden /dev/kvm"#,
        )
        .run();
}
