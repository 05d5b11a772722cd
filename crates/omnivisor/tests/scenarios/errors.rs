//! What the program says, and with which code it ends, when something is wrong.

use super::harness::Scenarios;

/// Mistakes that are told in a sentence, whatever the engine.
pub fn mistakes() -> Scenarios {
    Scenarios::default()
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
        .scenario(
            "an unknown image, and what is no VM",
            r#"code 127 run debain; says 'Unknown image' err
               code 127 run web.vmx; says 'There is no VM at web.vmx' err
               truncate -s 1M disk.img
               code 126 run --discard disk.img; says 'no boot loader' err
               mkdir folder; code 127 run folder; says 'There is no VM in the folder folder' err"#,
        )
        .scenario("nothing to boot", "code 2 omnivisor run; says 'There is nothing to boot' err")
}
