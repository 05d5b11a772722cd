//! Networks of a guest.

use super::harness::Scenarios;

/// A tap interface.
pub fn tap() -> Scenarios {
    Scenarios::default().prepare(&["--net", "tap=omni0", "debian", "--", "true"]).scenario(
        "through a tap interface",
        r#"ip tuntap add mode tap omni0; ip addr add 10.9.0.1/24 dev omni0; ip link set omni0 up
               mkdir web; head -c 100M /dev/urandom >web/blob
               busybox httpd -f -p 10.9.0.1:8000 -h web & web=$!
               socat -u TCP-LISTEN:9000,reuseaddr CREATE:got & sink=$!
               machine --net tap=omni0 --cmdline omnivisor.ip=10.9.0.2/24 debian -- sh -c '
                   set -e
                   ping -c 3 10.9.0.1 >&2
                   wget -q -O - http://10.9.0.1:8000/blob | sha256sum
                   dd if=/dev/urandom of=/sent bs=1M count=16 2>/dev/null
                   sha256sum </sent; nc 10.9.0.1 9000 </sent
                   mkfifo /hold; sleep 9999 >/hold 2>&1 &
                   echo listening; nc -l -p 7000 </hold | sha256sum' >output 2>err &
               machine=$!
               within 240 grep -q listening output
               ping -c 3 10.9.0.2
               head -c 1M web/blob >part; sleep 1; socat -u OPEN:part TCP:10.9.0.2:7000
               wait $machine || fail "exit code $?: $(cat output err)"
               kill $web; wait $sink
               same "$(sed -n 1p output)" "$(sha256sum <web/blob)"
               same "$(sed -n 2p output)" "$(sha256sum <got)"
               same "$(tail -n 1 output)" "$(sha256sum <part)"
               ip link del omni0"#,
    )
}

/// The user's network, by passt.
pub fn passt() -> Scenarios {
    Scenarios::default()
        .prepare(&["--net", "user", "debian", "--", "true"])
        .scenario(
            "of a host without a network",
            r#"mkdir web; head -c 100M /dev/urandom >web/blob
               busybox httpd -f -p 127.0.0.1:8000 -h web &
               socat -u TCP-LISTEN:9000,reuseaddr CREATE:got & sink=$!
               machine --net user,forward=7001:7000 debian -- sh -c '
                   set -e
                   wget -q -O - http://10.0.2.2:8000/blob | sha256sum
                   dd if=/dev/urandom of=/sent bs=1M count=4 2>/dev/null
                   sha256sum </sent; nc 10.0.2.2 9000 </sent
                   mkfifo /hold; sleep 9999 >/hold 2>&1 &
                   echo listening; nc -l -p 7000 </hold | sha256sum' >output 2>err &
               machine=$!
               within 240 grep -q listening output
               head -c 1M web/blob >part; sleep 1; socat -u OPEN:part TCP:127.0.0.1:7001
               wait $machine || fail "exit code $?: $(cat output err)"
               wait $sink
               same "$(sed -n 1p output)" "$(sha256sum <web/blob)"
               same "$(sed -n 2p output)" "$(sha256sum <got)"
               same "$(tail -n 1 output)" "$(sha256sum <part)"
               no_passt() { ! pgrep passt; }
               within 20 no_passt
               ! grep WARN err || fail 'a warning'"#,
        )
        .scenario(
            "to another computer",
            r#"busybox modprobe veth || true; echo '0 2147483647' >/proc/sys/net/ipv4/ping_group_range
               ip netns add outside; ip link add wan type veth peer name eth0 netns outside
               ip addr add 192.0.2.2/24 dev wan; ip link set wan up; ip route add default via 192.0.2.1
               ip -n outside addr add 192.0.2.1/24 dev eth0; ip -n outside addr add 192.0.2.3/24 dev eth0; ip -n outside link set eth0 up
               mkdir web; head -c 4M /dev/urandom >web/blob
               ip netns exec outside busybox httpd -f -p 192.0.2.3:8000 -h web &
               code 0 omnivisor run --net user debian -- sh -c '
                   ip -4 -o addr show dev eth0; ip route; ping -c 3 192.0.2.1 >&2 || exit
                   wget -q -O - http://192.0.2.3:8000/blob | sha256sum' >output
               says 192.0.2.2/24 output; says 'default via 192.0.2.1' output
               same "$(tail -n 1 output)" "$(sha256sum <web/blob)"
               ip link del wan; ip netns del outside"#,
        )
        .scenario(
            "of a machine that is killed",
            r#"leftovers() { ss -Hltuxn; ip -o link; pgrep passt || true; }
               leftovers >before
               machine --net user,forward=7001:7000 debian -- sh -c 'echo up; sleep 1000' >output 2>&1 &
               machine=$!
               within 240 grep -q up output
               pgrep passt; ss -Hltn | grep 7001
               kill -9 $machine; wait $machine || true
               nothing_left() { leftovers >after; cmp before after; }
               within 20 nothing_left"#,
        )
}
