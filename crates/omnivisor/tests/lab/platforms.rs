//! VMs where they live: our own and VirtualBox's.

use std::process::Command;

use serde_json::Value;

use crate::scenarios::harness::Scenarios;

pub const OMNIVISOR: &str = env!("CARGO_BIN_EXE_omnivisor");

/// A lab of tests/labs.
pub fn lab(name: &str) -> Command {
    Command::new(crate::repository().join("tests/labs").join(name))
}

/// What a lab's command said, which must have succeeded.
pub fn expect(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// Words for scripts that run in another lab than KVM's.
pub const WORDS: &str = r#"
    # A platform answers late on a busy computer.
    patience=300
    omnivisor() {
        case $1 in export | inspect) ;; *) set -- "$@" --timeout $patience ;; esac
        OMNIVISOR "$@"
    }
    # refused CODE TEXT COMMAND...
    refused() {
        code=$1 text=$2; shift 2; got=0
        omnivisor "$@" >said 2>&1 || got=$?
        [ $got = $code ] && grep -qF -- "$text" said || { echo "$got: $*"; cat said; exit 1; }
    }
    says() { grep -qF -- "$1" said || { echo "'$1' is not in:"; cat said; exit 1; }; }
"#;

/// One is steered, and one is killed.
fn own() -> Scenarios {
    Scenarios::default()
        .prepare(&["--net", "none", "debian"])
        .scenario(
            "a VM is listed, paused, reset and killed",
            r#"mkfifo console; sleep 1000 >console & holder=$!
               timeout 900 "$OMNIVISOR" run --engine "$ENGINE" --net none --name web --memory 128M \
                   debian -- sleep 1000 <console >out 2>talk & vm=$!
               is() { omnivisor list >list && grep -q "^web  *$1 " list; }
               within 100 is running
               says '128 MiB' list; says 'own:///' list
               code 126 run --name web --memory 128M debian -- true; says 'runs already' err
               code 0 omnivisor pause web; is paused
               code 125 omnivisor stop web; says 'hears nothing' err
               code 0 omnivisor resume web; is running
               code 0 omnivisor show web >page; says 'state     running' page; says '128 MiB' page
               code 127 omnivisor pause nobody
               code 2 omnivisor start web; says 'omnivisor run' err
               code 2 omnivisor stop --force web; says 'its power is cut' err; is running
               code 0 omnivisor stop --force --yes web
               within 30 sh -c "! kill -0 $vm"
               same "$(omnivisor list)" """#,
        )
        .scenario(
            "what a killed process leaves is removed",
            r#"mkfifo console; sleep 1000 >console &
               timeout 900 "$OMNIVISOR" run --engine "$ENGINE" --net none --name dead --memory 128M \
                   debian -- sleep 1000 <console >out 2>talk &
               is() { omnivisor list >list && grep -q "^dead  *running " list; }
               within 100 is
               pid=$(awk '/^dead/ { print $NF }' list)
               kill -9 $pid
               within 30 sh -c "! kill -0 $pid"
               same "$(omnivisor list)" ""; same "$(ls state/omnivisor/running)" """#,
        )
}

#[test]
fn our_own_vms_are_listed_and_steered_and_dead_ones_are_swept() {
    own().run(&crate::lab(700));
}

#[test]
fn a_vm_of_virtualbox_is_seen_and_steered() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("VirtualBox's lab needs root: not tested");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(OMNIVISOR, folder.path().join("omnivisor")).unwrap();
    let script = r#"
        cd FOLDER
        export VBOX_USER_HOME=$PWD/home VBOX_IPC_SOCKETID=omnivisor$$
        vbox() { VBoxManage "$@" >/dev/null 2>said || { cat said; exit 1; }; }
        vbox setproperty machinefolder $PWD/vms
        vbox createvm --name 'wéb 1' --ostype Debian12_64 --register
        vbox modifyvm 'wéb 1' --memory 512 --cpus 2
        vbox storagectl 'wéb 1' --name SATA --add sata
        vbox createmedium disk --filename "$PWD/vms/wéb 1/d.vdi" --size 64
        vbox storageattach 'wéb 1' --storagectl SATA --port 0 --type hdd --medium "$PWD/vms/wéb 1/d.vdi"
        vm='vbox:///wéb 1'
        omnivisor list vbox:/// >said; says 'wéb 1  stopped  2     512 MiB  Debian 12 Bookworm (64-bit)'
        omnivisor snapshot create "$vm" one --description first
        omnivisor snapshot create "$vm" two
        omnivisor snapshot list "$vm" >said; says 'two *           one'
        omnivisor show "$vm" --format json | sed -n '/^  "description"/,/^  }/p' >shown
        omnivisor inspect "vms/wéb 1/wéb 1.vbox" --format json >read
        omnivisor show "$vm" >said; says 'snapshot  one, '; says '2 processors, 512 MiB of memory'
        refused 2 'its present state is lost' snapshot revert "$vm" one
        omnivisor snapshot revert --yes "$vm" one
        omnivisor snapshot delete --yes "$vm" two
        refused 127 'no snapshot called "three"' snapshot delete --yes "$vm" three
        refused 127 'no VM called "nobody"' stop vbox:///nobody
        refused 125 'not currently running' stop "$vm"
        # A disk in three images, of which each knows the one before by its identity only.
        omnivisor snapshot create "$vm" three
        omnivisor pull "$vm" copied
        [ $(find copied -name '*.vdi' | wc -l) = 3 ]
        omnivisor inspect "copied/wéb 1.vbox" >said; says '64 MiB'; says 'copied/Snapshots/'
        [ -e /dev/vboxdrv ] || refused 2 'vboxdrv is not loaded' start "$vm"
        # Its server stands still, and is killed while it is asked.
        server() { grep -lsz "^VBOX_IPC_SOCKETID=omnivisor$$\$" /proc/[0-9]*/environ | cut -d/ -f3 | while read pid; do
            [ "$(cat /proc/$pid/comm 2>/dev/null)" != VBoxSVC ] || echo $pid; done; }
        omnivisor list vbox:/// >said; pid=$(server); [ -n "$pid" ]
        kill -STOP $pid
        patience=5; refused 125 'did not answer within 5 s' list vbox:///
        patience=60; omnivisor list vbox:/// >said 2>&1 & asked=$!
        sleep 1; kill -KILL $pid; got=0; wait $asked || got=$?
        [ $got = 125 ] && [ $(grep -c ' x ' said) = 1 ] || { echo "$got:"; cat said; exit 1; }
        omnivisor list vbox:/// >said; says 'wéb 1  stopped'
        omnivisor platforms vbox:/// >said; says 'VirtualBox 7.'
    "#;
    let words = WORDS.replace("OMNIVISOR", "./omnivisor");
    let script = words + &script.replace("FOLDER", folder.path().to_str().unwrap());
    let mut lab = lab("vbox-lab");
    lab.arg("-b").arg(folder.path()).args(["--", "bash", "-euc", &script]);
    expect(lab);
    let shown = std::fs::read_to_string(folder.path().join("shown")).unwrap();
    let shown: Value =
        serde_json::from_str(&format!("{{{}}}", shown.trim_end_matches([',', '\n']))).unwrap();
    let read = std::fs::read_to_string(folder.path().join("read")).unwrap();
    let read: Value = serde_json::from_str(&read).unwrap();
    let (shown, read) = (&shown["description"], &read["vms"][0]["description"]);
    for key in
        ["name", "uuid", "cpus", "memory", "firmware", "nics", "snapshots", "notes", "unread"]
    {
        assert_eq!(shown[key], read[key], "{key}");
    }
    assert_eq!(shown["drives"][0]["file"], read["drives"][0]["file"]);
}
