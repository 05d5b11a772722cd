//! VMs of Xen on its own host, and by ssh.

use crate::platforms::{OMNIVISOR, WORDS, expect, lab};
use crate::scenarios::harness::cache;
use crate::tiny;

/// Runs words of a shell on a Xen host.
fn on_xen(script: &str) {
    let script = format!("set -eu\n{}{script}", WORDS.replace("OMNIVISOR", OMNIVISOR));
    let mut lab = lab("xen-lab");
    lab.args(["--module", "loop", "--timeout", "560", "--", "sh", "-c", &script]);
    lab.env("KVM_LAB_CACHE", cache().join("kvm-lab"));
    expect(lab);
}

#[test]
fn a_vm_of_xen_is_seen_and_steered() {
    on_xen(
        r#"
        cd $(mktemp -d)
        # The same kernel as dom0's, with one program.
        mkdir -p root/bin root/proc root/dev && cp /bin/busybox root/bin/
        ln -s busybox root/bin/sh
        printf '#!/bin/sh\n/bin/busybox mount -t devtmpfs dev /dev\n%s\n' \
            'echo guest is up >/dev/hvc0; while :; do /bin/busybox sleep 1; done' >root/init
        chmod +x root/init
        (cd root; find . | cpio -o -H newc --quiet | gzip -1) >/run/initrd.gz
        # Unpacked: QEMU's software CPU has been seen to break Xen's unpacking of it.
        kernel=$(realpath /boot/vmlinuz-$(uname -r) | sed s/vmlinuz/vmlinux/)
        cat >pv.xml <<END
<domain type='xen'><name>pv guest</name><memory unit='MiB'>128</memory><vcpu>1</vcpu><os><type>linux</type>
<kernel>$kernel</kernel><initrd>/run/initrd.gz</initrd><cmdline>console=hvc0</cmdline></os></domain>
END
        # Another platform's description becomes a VM of Xen.
        omnivisor export pv.xml --to xl >/etc/xen/pv.cfg
        printf 'name = "pvh"\ntype = "pvh"\nkernel = "%s"\nramdisk = "/run/initrd.gz"\nmemory = 128\ncmdline = "%s"\n' \
            $kernel console=hvc0 >/etc/xen/pvh.cfg
        state() { omnivisor list xen:/// >said; says "$1"; }
        state 'pv guest  stopped  1     128 MiB'
        omnivisor start 'xen:///pv guest'; omnivisor start xen:///pvh
        state 'pv guest  running  1     128 MiB'; state 'pvh       running'
        i=0; until omnivisor console-log 'xen:///pv guest' 2>&1 | grep -q 'guest is up'; do
            i=$((i + 1)); [ $i -lt 300 ] || { echo 'no console'; exit 1; }; sleep 0.2
        done
        # What the tools in a guest would tell, and changes as they happen, come from xenstore.
        xenstore-write /local/domain/$(xl domid 'pv guest')/attr/vif/0/ipv4/0 192.0.2.9
        state 192.0.2.9
        omnivisor watch xen:/// >changes & watcher=$!
        changed() {
            i=0; until grep -q "$1" changes; do
                i=$((i + 1)); [ $i -lt 300 ] || { echo "no $1"; cat changes; exit 1; }; sleep 0.2
            done
        }
        changed 'appeared running   pvh'
        omnivisor pause 'xen:///pv guest'; state 'pv guest  paused'; changed 'changed  paused    pv guest'
        omnivisor resume 'xen:///pv guest'; state 'pv guest  running'
        omnivisor show xen:///pvh >said; says 'state     running'; says 'VM        pvh, of Xen'; says 128
        refused 2 'keeps no snapshots' snapshot create xen:///pvh one
        refused 2 'its power is cut' stop --force xen:///pvh
        refused 127 'no VM called "nobody"' pause xen:///nobody
        refused 127 'no VM called "Domain-0"' stop --force --yes xen:///Domain-0
        omnivisor stop --force --yes xen:///pvh; state 'pvh       stopped'; changed 'changed  stopped   pvh'
        kill $watcher
        omnivisor stop --force --yes 'xen:///pv guest'; state 'pv guest  stopped'
        omnivisor platforms xen:/// >said; says 'Xen 4.'
    "#,
    );
}

#[test]
fn a_vm_of_xen_is_copied_and_run_where_it_is_and_by_ssh() {
    let tiny = tiny::kernel();
    let script = r#"
        cd $(mktemp -d)
        export XDG_STATE_HOME=$PWD/state
        # An image over another one, a volume, and a kernel beside them.
        mkdir images; head -c 300000 /dev/urandom >images/base.raw; truncate -s 2M images/base.raw
        truncate -s 1M volume; printf disk | dd of=volume bs=1 seek=900000 conv=notrunc status=none
        loop=$(losetup -f --show volume)
        qemu-img create -q -f qcow2 -b $PWD/images/base.raw -F raw images/disk.qcow2
        cp KERNEL kernel
        printf 'name = "two"\ntype = "pvh"\nkernel = "%s"\nmemory = 32\ndisk = [ "%s", "%s" ]\n' $PWD/kernel \
            "format=qcow2,vdev=xvda,access=rw,target=$PWD/images/disk.qcow2" "phy:$loop,xvdb,w" >/etc/xen/two.cfg
        copied() {
            qemu-img compare -q $1/disk.qcow2 images/disk.qcow2; cmp $1/$(basename $loop).raw volume
            cmp $1/kernel kernel
            omnivisor inspect $1/two.cfg >said; says '2 MiB'; says '1 MiB'
        }
        omnivisor pull xen:///two here; copied here
        mkdir -p keys /run/sshd; for key in host user; do ssh-keygen -q -t ed25519 -N '' -f keys/$key; done
        printf 'ListenAddress 127.0.0.1\nPort 2222\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nPidFile none\n%s\n' \
            $PWD/keys/host $PWD/keys/user.pub 'PermitRootLogin yes
Subsystem sftp internal-sftp' >keys/sshd
        /usr/sbin/sshd -f keys/sshd
        printf '[127.0.0.1]:2222 %s\n' "$(cat keys/host.pub)" >keys/known
        printf '#!/bin/sh\nexec ssh -F none -i %s -o UserKnownHostsFile=%s "$@"\n' $PWD/keys/user $PWD/keys/known >keys/ssh
        chmod +x keys/ssh; export OMNIVISOR_SSH=$PWD/keys/ssh
        # What the host's user has in the start of a shell would run at each login, which takes long here.
        sed -i 's|^root:.*|root:x:0:0:root:/run:/bin/sh|' /etc/passwd
        remote=xen+ssh://root@127.0.0.1:2222
        omnivisor pull --connections 1 $remote/two there; copied there
        # It boots before its disks are here, and goes on where it was until they are.
        i=0; until grep -q 'All of' talk 2>/dev/null; do
            i=$((i + 1)); [ $i -lt 20 ] || { cat talk; exit 1; }
            omnivisor run --engine soft $remote/two >out 2>talk || { cat out talk; exit 1; }
            grep -q 'tiny guest is up' out
        done
        # One that runs is seen through a socket of its host, and not copied.
        printf 'name = "on"\ntype = "pvh"\nkernel = "%s"\nmemory = 32\n' $PWD/kernel >/etc/xen/on.cfg
        omnivisor start xen:///on
        xenstore-write /local/domain/$(xl domid on)/attr/vif/0/ipv4/0 192.0.2.10
        omnivisor list $remote >said; says 'on    running'; says 192.0.2.10
        refused 125 'is running' pull $remote/on running
        # xenstored stands still, and with it xl.
        kill -STOP $(cat /run/xenstore.pid); patience=5
        refused 125 'did not answer within 5 s' list xen:///
        refused 125 'did not answer within 5 s' stop --force --yes xen:///on
        kill -CONT $(cat /run/xenstore.pid); patience=300
        omnivisor stop --force --yes xen:///on
        omnivisor list xen:/// >said; says 'on    stopped'
    "#;
    on_xen(&script.replace("KERNEL", tiny.path().join("kernel").to_str().unwrap()));
}
