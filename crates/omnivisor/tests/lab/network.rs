//! Networks of a guest.

use crate::harness::Lab;

#[test]
fn networks_carry_data_both_ways() {
    Lab::new(1300)
        .prepare(&["--net", "tap=omni0", "debian", "--", "true"])
        .scenario(
            "through a tap interface",
            r#"ip tuntap add mode tap omni0; ip addr add 10.9.0.1/24 dev omni0; ip link set omni0 up
               mkdir web; head -c 100M /dev/urandom >web/blob
               busybox httpd -f -p 10.9.0.1:8000 -h web & web=$!
               socat -u TCP-LISTEN:9000,reuseaddr CREATE:got & sink=$!
               "$OMNIVISOR" run --net tap=omni0 --cmdline omnivisor.ip=10.9.0.2/24 debian -- sh -c '
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
        .run();
}
