//! Disks, shared folders, sockets and memory of a guest.

use super::harness::Scenarios;

/// Raw disks: content, sizes, discards, locks.
pub fn disks() -> Scenarios {
    Scenarios::default()
        .prepare(&["--net", "none", "--disk", "/dev/null", "debian", "--", "true"])
        .scenario(
            "what the guest has flushed is in the file, and what it discards is not",
            r#"truncate -s 64M disk; head -c 8M /dev/urandom >input; dd if=input of=disk conv=notrunc status=none
               code 0 run --disk disk,in-place,serial=OV123 debian -- sh -c '
                   set -e
                   cat /sys/block/vda/serial; echo
                   blockdev --getsize64 /dev/vda
                   dd if=/dev/vda bs=1M count=8 2>/dev/null | sha256sum
                   dd if=/dev/vda of=/dev/vda bs=1M count=8 seek=16 conv=fsync 2>/dev/null
                   blkdiscard -o 0 -l 8388608 /dev/vda
                   dd if=/dev/vda bs=1M count=8 2>/dev/null | sha256sum' >output
               cmp <(head -c 8M /dev/zero) <(head -c 8M disk)
               cmp input <(dd if=disk bs=1M skip=16 count=8 status=none)
               same "$(sed -n 1p output)" OV123
               same "$(sed -n 2p output)" 67108864
               same "$(sed -n 3p output)" "$(sha256sum <input)"
               same "$(sed -n 4p output)" "$(head -c 8M /dev/zero | sha256sum)"
               [ "$(du -k disk | cut -f1)" -le 9000 ] || fail "$(du -k disk) are still allocated""#,
        )
        .scenario(
            "a file system on a disk outlives the machine",
            r#"truncate -s 16M disk; mke2fs -q -F -t ext4 disk
               code 0 run --disk disk,in-place debian -- sh -c '
                   set -e; mount -t ext4 /dev/vda /mnt; echo kept >/mnt/file; sync; umount /mnt'
               e2fsck -fn disk
               same "$(debugfs -R 'cat file' disk 2>/dev/null)" kept"#,
        )
        .scenario(
            "a read-only disk cannot be written",
            r#"truncate -s 4M disk; before=$(sha256sum <disk)
               code 0 run --disk disk,readonly debian -- sh -c '
                   cat /sys/block/vda/ro; ! dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync' >output
               same "$(cat output)" 1; same "$before" "$(sha256sum <disk)""#,
        )
        .scenario(
            "a disk that another machine writes to is busy; the machine killed, it is not",
            r#"truncate -s 4M disk
               machine --net none --disk disk,in-place --vsock vsock debian -- sh -c 'echo up; sleep 1000' >output 2>&1 &
               first=$!
               within 120 grep -q up output
               code 126 run --disk disk,in-place debian -- true; says 'disk is in use by process' err
               kill -9 $first; wait $first || true
               code 0 run --disk disk,in-place --vsock vsock debian -- true"#,
        )
}

/// Disks of every format, and what is written to them.
pub fn overlays() -> Scenarios {
    Scenarios::default()
        .prepare(&["--net", "none", "--disk", "/dev/null", "debian", "--", "true"])
        .scenario(
            "formats are told by content, written through overlays, and images stay as they are",
            r#"head -c 6M /dev/urandom >content; truncate -s 16M content; disks=; n=0
               for format in raw qcow2 vmdk vpc vhdx vdi parallels; do
                   qemu-img convert -f raw -O $format $([ $format != vpc ] || echo -o force_size) content image$n
                   disks="$disks --disk image$n"; n=$((n + 1))
               done
               before=$(sha256sum image?)
               code 0 run $disks debian -- sh -c '
                   set -e; cd /dev
                   for d in vd?; do dd if=$d bs=1M count=16 2>/dev/null | sha256sum; done
                   for d in vd?; do echo $d-was-here | dd of=$d bs=1k seek=7000 conv=notrunc,fsync 2>/dev/null; done' >output
               same "$(sort -u output)" "$(sha256sum <content)"; same "$(wc -l <output)" 7
               same "$before" "$(sha256sum image?)"
               code 0 run $disks debian -- sh -c '
                   cd /dev; for d in vd?; do dd if=$d bs=1k skip=7000 count=1 2>/dev/null | head -n 1; done' >output
               same "$(tr '\n' ' ' <output)" "vda-was-here vdb-was-here vdc-was-here vdd-was-here vde-was-here vdf-was-here vdg-was-here "
               code 0 run --discard $disks debian -- sh -c 'dd if=/dev/vdc bs=1k skip=7000 count=1 2>/dev/null' >output
               cmp <(dd if=content bs=1k skip=7000 count=1 status=none) output
               same "$before" "$(sha256sum image?)""#,
        )
        .scenario(
            "a large write and a file system survive a killed machine",
            r#"truncate -s 64M content; mke2fs -q -F -t ext4 content; qemu-img convert -f raw -O vmdk content image
               machine --net none --disk image debian -- sh -c '
                   set -e; mount -t ext4 /dev/vda /mnt; dd if=/dev/urandom of=/mnt/file bs=1M count=8 2>/dev/null
                   sha256sum </mnt/file; sync; echo kept >/mnt/mark; sync; echo synced; sleep 1000' >output 2>&1 &
               first=$!; within 200 grep -q synced output
               kill -9 $first; wait $first || true
               code 0 run --disk image debian -- sh -c '
                   mount -t ext4 /dev/vda /mnt; cat /mnt/mark; sha256sum </mnt/file' >again
               same "$(sed -n 1p again)" kept
               says "$(sed -n 2p again)" output"#,
        )
}

/// Shared folders, vsock, the balloon.
pub fn folders() -> Scenarios {
    Scenarios::default()
        .prepare(&["--net", "none", "--share", "/usr", "debian", "--", "true"])
        .scenario(
            "a shared folder is read and written",
            r#"mkdir folder closed; head -c 3M /dev/urandom >folder/input; echo 1 >closed/file
               code 0 run --share folder --share closed,readonly debian -- sh -c '
                   set -e
                   sha256sum </mnt/folder/input
                   mkdir /mnt/folder/new; cat /mnt/folder/input /mnt/folder/input >/mnt/folder/new/twice
                   mv /mnt/folder/new/twice /mnt/folder/output; rmdir /mnt/folder/new
                   cat /mnt/closed/file
                   ! touch /mnt/closed/new' >output
               same "$(sed -n 1p output)" "$(sha256sum <folder/input)"
               same "$(sed -n 2p output)" 1
               cmp <(cat folder/input folder/input) folder/output
               [ ! -e folder/new ] && [ ! -e closed/new ] || fail "$(ls -R)""#,
        )
        .scenario(
            "bytes come back through vsock in both directions",
            r#"head -c 1M /dev/urandom >input
               socat UNIX-LISTEN:vsock_6000 EXEC:cat &
               machine --net none --vsock vsock --share /:root,readonly debian -- sh -c '
                   cd /mnt/root
                   dd if=/dev/urandom of=/sent bs=1k count=1024 2>/dev/null
                   chroot /mnt/root socat -t 20 - VSOCK-CONNECT:2:6000 </sent >/back
                   cmp /sent /back && echo guest to host
                   echo listening; chroot /mnt/root socat VSOCK-LISTEN:5000 EXEC:cat' >output 2>&1 &
               machine=$!
               within 180 grep -q listening output; sleep 2
               { printf 'CONNECT 5000\n'; cat input; } | socat -t 60 - UNIX-CONNECT:vsock >back
               wait $machine || fail "exit code $?: $(cat output)"
               says 'guest to host' output
               head -n 1 back | grep -q '^OK '
               cmp input <(tail -n +2 back)"#,
        )
        .scenario(
            "memory that the guest no longer uses goes back to the host",
            r#"machine --net none --memory 400M --share /usr debian -- sh -c '
                   mkdir /fill; mount -t tmpfs -o size=100% none /fill
                   dd if=/dev/urandom of=/fill/file bs=1M count=150 2>/dev/null; echo filled; read line
                   umount /fill; echo freed; read line' < <(
                       within 240 test -e go; echo; within 240 test -e end; echo) >output 2>&1 &
               machine=$!
               used() { awk '/^Rss/ { sum += $2 } END { print sum }' /proc/$machine/smaps_rollup; }
               within 240 grep -q filled output; full=$(used); touch go
               within 60 grep -q freed output
               less() { [ "$(used)" -lt $((full - 100000)) ]; }
               within 60 less
               touch end; wait $machine"#,
        )
}
