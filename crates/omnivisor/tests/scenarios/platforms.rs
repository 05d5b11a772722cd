//! Our own VMs, seen and steered by others.

use super::harness::Scenarios;

/// One is steered, and one is killed.
pub fn own() -> Scenarios {
    Scenarios::default()
        .prepare(&["--net", "none", "debian"])
        .scenario(
            "a VM is listed, paused, reset and killed",
            r#"mkfifo console; sleep 1000 >console & holder=$!
               run --name web --memory 128M debian -- sleep 1000 <console >out 2>talk & vm=$!
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
               run --name dead --memory 128M debian -- sleep 1000 <console >out 2>talk & vm=$!
               is() { omnivisor list >list && grep -q "^dead  *running " list; }
               within 100 is
               pid=$(awk '/^dead/ { print $NF }' list)
               kill -9 $pid
               within 30 sh -c "! kill -0 $pid"
               same "$(omnivisor list)" ""; same "$(ls state/omnivisor/running)" """#,
        )
}
