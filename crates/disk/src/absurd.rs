//! Headers that claim more than their file holds: they are refused, and no memory is taken for what they claim.

use std::process::Command;

use crate::crash::{Folder, image};
use crate::{Format, fuzz, vhd, vhdx};

/// Memory that the claims may take together, beside that of the images.
const LIMIT: u64 = 64 << 20;
const ALL: u64 = u64::MAX;

/// An image, and what its header claims: where, with how many bytes, and how much. Places from the end are negative.
struct Claims {
    image: &'static str,
    byte_order: ByteOrder,
    claims: &'static [&'static [(i64, usize, u64)]],
}

#[derive(Clone, Copy)]
enum ByteOrder {
    Big,
    Little,
}

const BIG: ByteOrder = ByteOrder::Big;
const LITTLE: ByteOrder = ByteOrder::Little;
const MIB: i64 = 1 << 20;

const CLAIMS: [Claims; 14] = [
    Claims {
        image: "qcow2",
        byte_order: BIG,
        claims: &[
            // Size of the disk, entries and place of the first table, counts of references, snapshots.
            &[(24, 8, 1 << 61)],
            &[(36, 4, ALL)],
            &[(40, 8, 1 << 40)],
            &[(56, 4, ALL)],
            &[(48, 8, 1 << 40)],
            &[(60, 4, ALL), (64, 8, 0)],
            &[(60, 4, 1), (64, 8, 1 << 40)],
            // The name of a parent: its length and its place. The header's own length, an extension's.
            &[(8, 8, 512), (16, 4, ALL)],
            &[(8, 8, 1 << 40), (16, 4, 1023)],
            &[(100, 4, ALL - 7)],
            &[(100, 4, 104), (104, 8, 0x1234_5678_ffff_ffff)],
        ],
    },
    Claims {
        image: "seed qcow/plain",
        byte_order: BIG,
        claims: &[
            &[(8, 8, 1 << 40), (16, 4, 1023)],
            &[(8, 8, 48), (16, 4, ALL)],
            &[(24, 8, ALL)],
            &[(40, 8, 1 << 50)],
        ],
    },
    Claims {
        image: "seed qed/plain",
        byte_order: LITTLE,
        claims: &[&[(4, 4, 1 << 31)], &[(8, 4, ALL)], &[(40, 8, 1 << 50)], &[(48, 8, ALL)]],
    },
    Claims {
        image: "vmdk",
        byte_order: LITTLE,
        claims: &[
            // Capacity, grain, descriptor, entries of a table, directory.
            &[(12, 8, 1 << 40)],
            &[(12, 8, ALL)],
            &[(20, 8, ALL)],
            &[(28, 8, 1 << 40)],
            &[(36, 8, 1 << 31)],
            &[(44, 4, ALL)],
            &[(56, 8, 1 << 40)],
        ],
    },
    Claims {
        image: "vmdk of two extents",
        byte_order: BIG,
        claims: &[
            // "RW 2048" becomes "RW 9999", and a number that nothing can hold.
            &[(TWO_EXTENTS + 3, 4, 0x3939_3939)],
            &[(TWO_EXTENTS + 3, 8, 0x3939_3939_3939_3939)],
        ],
    },
    Claims {
        image: "vhd",
        byte_order: BIG,
        claims: &[
            // The size in the footer and its copy, the table's place and entries, the block's size.
            &[(-512 + 48, 8, 1 << 60), (48, 8, 1 << 60)],
            &[(512 + 16, 8, 1 << 40)],
            &[(512 + 28, 4, ALL)],
            &[(512 + 32, 4, 1 << 31)],
            // Where the header is.
            &[(-512 + 16, 8, 1 << 40)],
            // A child whose parent's name is longer than the file.
            &[(-512 + 60, 4, 4), (512 + 576, 4, 0x5732_7275), (512 + 584, 4, ALL)],
        ],
    },
    Claims { image: "vhd,layout=fixed", byte_order: BIG, claims: &[&[(-512 + 48, 8, 1 << 60)]] },
    Claims {
        image: "vhdx,block-size=1M",
        byte_order: LITTLE,
        claims: &[
            // Size of the disk and of its blocks; entries of the metadata.
            &[(2 * MIB + (64 << 10) + 8, 8, 1 << 45)],
            &[(2 * MIB + (64 << 10), 4, 1 << 31)],
            &[(2 * MIB + 10, 2, ALL)],
            // Regions: how many, and where the first lies.
            &[(192 << 10 | 8, 4, ALL)],
            &[((192 << 10) + 32, 8, 1 << 50)],
            &[((192 << 10) + 64, 8, 1 << 50)],
            // The log of both headers: its length, and its place.
            &[
                ((64 << 10) + 48, 8, 1),
                ((64 << 10) + 68, 4, ALL),
                ((128 << 10) + 48, 8, 1),
                ((128 << 10) + 68, 4, ALL),
            ],
            &[
                ((64 << 10) + 48, 8, 1),
                ((64 << 10) + 68, 4, 64 << 20),
                ((128 << 10) + 48, 8, 1),
                ((128 << 10) + 68, 4, 64 << 20),
            ],
        ],
    },
    Claims {
        image: "vdi",
        byte_order: LITTLE,
        claims: &[
            // The map's place, size of the disk and of its blocks, number of blocks.
            &[(340, 4, ALL)],
            &[(368, 8, 1 << 60)],
            &[(376, 4, 1 << 31)],
            &[(384, 4, ALL)],
        ],
    },
    Claims {
        image: "parallels",
        byte_order: LITTLE,
        claims: &[&[(28, 4, ALL)], &[(32, 4, ALL)], &[(36, 8, 1 << 31)]],
    },
    Claims {
        image: "seed dmg/chunks",
        byte_order: BIG,
        claims: &[&[(-512 + 216, 8, 1 << 40)], &[(-512 + 224, 8, 1 << 40)]],
    },
    Claims {
        image: "seed vma/one",
        byte_order: BIG,
        claims: &[&[(48, 4, ALL)], &[(52, 4, ALL)], &[(56, 4, ALL)]],
    },
    Claims {
        image: "seed asif/partial",
        byte_order: BIG,
        claims: &[&[(16, 8, 1 << 50), (24, 8, 1 << 50)], &[(48, 8, ALL)], &[(64, 4, 1 << 31)]],
    },
    Claims {
        image: "seed vmdk/stream",
        byte_order: LITTLE,
        claims: &[&[(-1024 + 12, 8, 1 << 40)], &[(-1024 + 56, 8, 1 << 40)]],
    },
];

/// Where the first extent is told.
const TWO_EXTENTS: i64 = 94;

fn bytes_of(name: &str) -> (Format, Vec<u8>) {
    let Some(seed) = name.strip_prefix("seed ") else {
        let (format, mut files) = image(name);
        return (format, files.remove(0).1);
    };
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds");
    let input = std::fs::read(format!("{folder}/disk_{seed}")).unwrap();
    let format = seed.split('/').next().unwrap().parse().unwrap();
    (format, fuzz::expand(&input).unwrap())
}

fn seal(format: Format, bytes: &mut [u8]) {
    match format {
        Format::Vhd => vhd::seal(bytes),
        Format::Vhdx => vhdx::seal(bytes),
        _ => {}
    }
}

/// The most address space that this program has had, in bytes: memory counts as soon as it is asked for.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

/// In a program of its own, whose memory nothing else moves.
fn alone(test: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", &format!("absurd::{test}")])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

#[test]
fn a_header_that_claims_more_than_the_file_holds_is_refused_and_not_allocated() {
    alone("claims");
}

#[test]
fn no_field_of_a_header_makes_memory_be_taken_for_what_it_claims() {
    alone("fields");
}

#[test]
#[ignore = "another test starts it"]
fn claims() {
    let mut believed = Vec::new();
    for Claims { image, byte_order, claims } in CLAIMS {
        let (format, whole) = bytes_of(image);
        let open = |bytes: &[u8]| {
            let (_, mut files) = self::image("vmdk of two extents");
            files[0].1 = bytes.to_vec();
            Folder::read_only(&files).open(format, None).map(drop)
        };
        open(&whole).unwrap_or_else(|error| panic!("{image}: {error}"));
        let before = peak();
        for claim in claims {
            let mut bytes = whole.clone();
            for &(at, size, value) in *claim {
                let at = if at < 0 { bytes.len() as i64 + at } else { at } as usize;
                let part = &mut bytes[at..at + size];
                match byte_order {
                    ByteOrder::Big => part.copy_from_slice(&value.to_be_bytes()[8 - size..]),
                    ByteOrder::Little => part.copy_from_slice(&value.to_le_bytes()[..size]),
                }
            }
            seal(format, &mut bytes);
            if open(&bytes).is_ok() {
                believed.push((image, claim));
            }
            fuzz::read_all(format, &bytes);
            assert!(peak() < before + LIMIT, "{image}: {claim:?} took memory");
        }
    }
    assert!(believed.is_empty(), "believed: {believed:?}");
}

/// Where structures lie that a header leads to, in bytes from the start or the end.
fn structures(format: Format) -> &'static [i64] {
    match format {
        Format::Vhd => &[0, 512, -512],
        Format::Vhdx => &[64 << 10, 128 << 10, 192 << 10, 2 * MIB, 2 * MIB + (64 << 10)],
        Format::Dmg => &[-512, -300],
        Format::Vmdk => &[0, -1024],
        Format::Vma => &[0, 4096],
        _ => &[0],
    }
}

#[test]
#[ignore = "another test starts it"]
fn fields() {
    let images = CLAIMS.iter().map(|claims| claims.image);
    for name in images.chain(["qcow2,extended-l2=on", "seed qcow2/zstd", "vdi,layout=fixed"]) {
        let (format, whole) = bytes_of(name);
        fuzz::read_all(format, &whole);
        let before = peak();
        for start in structures(format) {
            let start = if *start < 0 { whole.len() as i64 + start } else { *start } as usize;
            for at in (start..(start + 256).min(whole.len().saturating_sub(8))).step_by(4) {
                for value in
                    [[0xff; 4].as_slice(), &[0x10; 4], &[0, 0, 0x10, 0x10, 0x10, 0x10, 0, 0]]
                {
                    let mut bytes = whole.clone();
                    bytes[at..at + value.len()].copy_from_slice(value);
                    seal(format, &mut bytes);
                    fuzz::read_all(format, &bytes);
                    let more = peak().saturating_sub(before) >> 20;
                    assert!(more < LIMIT >> 20, "{name}: {at} took {more} MiB");
                }
            }
        }
    }
}
