//! Whatever bytes a guest has written: everything that reads them returns.

use proptest::collection::vec;
use proptest::prelude::*;

const SCRIPT: &str = "set a=\"$b\"\nif [ -s $prefix/grubenv -a ! x = \"$a\" ]; then load_env; elif false; then true; fi\n\
    function f { search --fs-uuid --set=root $1; }\nf 0123-4567\nmenuentry 'A' --id a { linux /k $a; initrd (hd0,gpt1)/i }\n\
    submenu B { menuentry C { configfile /boot/grub/grub.cfg } }\nfor i in 1 2; do blscfg; done\ntitle x\nlinux /v\noptions a $b\n\
    label y\n kernel /k\n append initrd=/i\n kernel /k\n default 1\n";

/// Signatures, which lead into the readers: on a disk that repeats 8 KiB they are where they are looked for.
const SIGNATURES: [(usize, &[u8]); 11] = [
    (0, b"XFSB\0\0\x10\0"),
    (0, b"hsqs\0\0\0\0\0\0\0\0\0\x10\0\0\x08\0\0\0\x06\0\0\0\0\0\0\0\x04\0\0\0"),
    (0, b"\x01CD001\x01"),
    (0x40, b"_BHRfS_M"),
    (0x1fe, &[0x55, 0xaa]),
    (0x200, b"EFI PART"),
    (0x400, b"\xe2\xe1\xf5\xe0\0\0\0\0\0\0\0\0\x0c\0\x24\0"),
    (0x400, b"LABELONE"),
    (0x418, b"LVM2 001"),
    (0x438, &[0x53, 0xef]),
    (0x1000, &[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn configurations_end(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..20), cut in 0..SCRIPT.len()) {
        let mut bytes = SCRIPT.as_bytes()[cut..].to_vec();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        guest::loader::fuzz_loader(&bytes);
    }

    #[test]
    fn initial_ram_disks_end(magic in 0..6_usize, bytes in vec(any::<u8>(), 0..600)) {
        let magics: [&[u8]; 6] =
            [b"", b"070701", &[0x1f, 0x8b, 8, 0], &[0x28, 0xb5, 0x2f, 0xfd], &[2, 0x21, 0x4c, 0x18], b"\x89LZO\0\r\n\x1a\n"];
        guest::fuzz_initrd(&[magics[magic], &bytes].concat());
    }

    #[test]
    fn disks_end(
        signatures in vec(any::<bool>(), SIGNATURES.len()),
        small in any::<bool>(),
        bytes in vec(any::<u8>(), 8192),
    ) {
        // Small numbers lead further than large ones.
        let mut bytes = bytes;
        if small {
            bytes.iter_mut().enumerate().filter(|(index, _)| index % 4 != 1).for_each(|(_, byte)| *byte %= 3);
        }
        for ((place, signature), _) in SIGNATURES.iter().zip(signatures).filter(|(_, wanted)| *wanted) {
            bytes[*place..][..signature.len()].copy_from_slice(signature);
        }
        guest::fuzz_storage(&bytes);
    }
}
