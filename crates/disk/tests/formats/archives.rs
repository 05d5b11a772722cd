//! Formats that are only read: Apple's DMG and ASIF, the archives of Proxmox and XenServer. Nothing here
//! writes them, so the tests put them together by their descriptions.

use std::io::Write;

use disk::{Format, ImageOptions};

use crate::common::{Workshop, assert_disk_holds, chain, has_qemu_img, open, read_only};
use crate::make_vma;

const LENGTH: usize = (3 << 20) + 1024;
const SECTOR: usize = 512;

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let bits = part.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte));
        let bits = bits << (8 * (3 - part.len()));
        for index in 0..4 {
            let digit = char::from(DIGITS[(bits >> (18 - 6 * index) & 63) as usize]);
            text.push(if index <= part.len() { digit } else { '=' });
        }
    }
    text
}

/// Types of chunks of a DMG.
const DMG_RAW: u32 = 1;
const DMG_IGNORED: u32 = 2;
const DMG_ADC: u32 = 0x8000_0004;
const DMG_ZLIB: u32 = 0x8000_0005;
const DMG_BZIP2: u32 = 0x8000_0006;
const DMG_LZFSE: u32 = 0x8000_0007;
const DMG_XZ: u32 = 0x8000_0008;

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut packer = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
    let mut stream = vec![0; packer.zlib_compress_bound(bytes.len())];
    let length = packer.zlib_compress(bytes, &mut stream).unwrap();
    stream.truncate(length);
    stream
}

/// Copies of what lies up to 64 KiB back where three bytes are the same again, in both of their forms.
fn adc(bytes: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut plain = Vec::new();
    let mut last = std::collections::HashMap::new();
    let mut at = 0;
    while at < bytes.len() {
        let seen = bytes.get(at..at + 3).and_then(|three| last.insert(three, at));
        let back = seen.map(|seen| at - seen).filter(|back| *back <= 1 << 16);
        let longest = |back: usize, most: usize| {
            let same = |index: &usize| bytes.get(at + index) == bytes.get(at + index - back);
            (0..most.min(bytes.len() - at)).take_while(same).count()
        };
        let copy = back.and_then(|back| match longest(back, 67) {
            length @ 3..=18 if back <= 1 << 10 => Some((back - 1, length, false)),
            length @ 4.. => Some((back - 1, length, true)),
            _ => None,
        });
        let Some((back, length, is_far)) = copy else {
            plain.push(bytes[at]);
            at += 1;
            continue;
        };
        flush_plain(&mut stream, &mut plain);
        if is_far {
            stream.extend([0x40 | (length - 4) as u8, (back >> 8) as u8, back as u8]);
        } else {
            stream.extend([((length - 3) << 2 | back >> 8) as u8, back as u8]);
        }
        at += length;
    }
    flush_plain(&mut stream, &mut plain);
    stream
}

fn flush_plain(stream: &mut Vec<u8>, plain: &mut Vec<u8>) {
    for part in plain.chunks(128) {
        stream.push(0x80 | (part.len() - 1) as u8);
        stream.extend_from_slice(part);
    }
    plain.clear();
}

fn dmg_pack(kind: u32, bytes: &[u8]) -> Vec<u8> {
    match kind {
        DMG_ADC => adc(bytes),
        DMG_ZLIB => zlib(bytes),
        DMG_LZFSE => {
            let mut stream = Vec::new();
            lzfse_rust::encode_bytes(bytes, &mut stream).unwrap();
            stream
        }
        DMG_BZIP2 => {
            let mut writer = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        DMG_XZ => {
            let mut writer = liblzma::write::XzEncoder::new(Vec::new(), 1);
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        _ => bytes.to_vec(),
    }
}

/// An image of two partitions whose chunks take these types in turn; zeroes are left out.
fn dmg(content: &[u8], kinds: &[u32]) -> Vec<u8> {
    const CHUNK: usize = 256 << 10;
    let seam = CHUNK * 5;
    let mut bytes = Vec::new();
    let mut tables = String::new();
    let mut turn = 0;
    for (start, part) in [(0, &content[..seam]), (seam, &content[seam..])] {
        let mut entries: Vec<[u8; 40]> = Vec::new();
        let mut push = |kind: u32, start: usize, length: usize, offset: usize, stored: usize| {
            let mut entry = [0; 40];
            entry[..4].copy_from_slice(&kind.to_be_bytes());
            for (at, value) in
                [(8, start / SECTOR), (16, length / SECTOR), (24, offset), (32, stored)]
            {
                entry[at..at + 8].copy_from_slice(&(value as u64).to_be_bytes());
            }
            entries.push(entry);
        };
        for (index, chunk) in part.chunks(CHUNK).enumerate() {
            if chunk.iter().all(|&byte| byte == 0) {
                push(DMG_IGNORED, index * CHUNK, chunk.len(), 0, 0);
                continue;
            }
            let kind = kinds[turn % kinds.len()];
            turn += 1;
            let packed = dmg_pack(kind, chunk);
            push(kind, index * CHUNK, chunk.len(), bytes.len(), packed.len());
            bytes.extend_from_slice(&packed);
        }
        push(0x7fff_fffe, 0, 0, 0, 0);
        push(0xffff_ffff, part.len(), 0, 0, 0);
        let mut table = vec![0; 204];
        table[..4].copy_from_slice(b"mish");
        table[4..8].copy_from_slice(&1_u32.to_be_bytes());
        table[8..16].copy_from_slice(&((start / SECTOR) as u64).to_be_bytes());
        table[16..24].copy_from_slice(&((part.len() / SECTOR) as u64).to_be_bytes());
        table[32..36].copy_from_slice(&(CHUNK as u32 / 512 + 8).to_be_bytes());
        table[200..204].copy_from_slice(&(entries.len() as u32).to_be_bytes());
        table.extend(entries.concat());
        tables += &format!(
            "<dict><key>CFName</key><string>disk image</string><key>Data</key>\
             <data>\n\t{}\n\t</data><key>ID</key><string>0</string></dict>",
            base64(&table)
        );
    }
    let plist = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<plist version=\"1.0\"><dict>\
         <key>resource-fork</key><dict><key>blkx</key><array>{tables}</array>\
         <key>plst</key><array><dict><key>Data</key><data>AAAA</data></dict></array>\
         </dict></dict></plist>\n"
    );
    let mut trailer = vec![0; 512];
    trailer[..4].copy_from_slice(b"koly");
    trailer[4..8].copy_from_slice(&4_u32.to_be_bytes());
    trailer[8..12].copy_from_slice(&512_u32.to_be_bytes());
    let numbers =
        [(32, bytes.len()), (216, bytes.len()), (224, plist.len()), (492, content.len() / SECTOR)];
    for (at, value) in numbers {
        trailer[at..at + 8].copy_from_slice(&(value as u64).to_be_bytes());
    }
    trailer[60..64].copy_from_slice(&1_u32.to_be_bytes());
    bytes.extend_from_slice(plist.as_bytes());
    bytes.extend_from_slice(&trailer);
    bytes
}

#[test]
fn dmg_of_every_compression_is_read() {
    let workshop = Workshop::new(LENGTH);
    let path = workshop.path("disk.dmg");
    let mixed = [DMG_ZLIB, DMG_RAW, DMG_XZ, DMG_ADC, DMG_LZFSE];
    let each = [DMG_RAW, DMG_ADC, DMG_ZLIB, DMG_BZIP2, DMG_LZFSE, DMG_XZ];
    for kinds in each.iter().map(std::slice::from_ref).chain([&mixed[..]]) {
        std::fs::write(&path, dmg(&workshop.content, kinds)).unwrap();
        let (disk, infos) = disk::open_chain(&path, &read_only()).unwrap();
        assert_eq!((infos[0].format, disk.len()), (Format::Dmg, LENGTH as u64));
        assert_disk_holds(&*disk, &workshop.content, &format!("{kinds:x?}"));
        if has_qemu_img() && kinds.iter().all(|kind| matches!(*kind, DMG_RAW | DMG_ZLIB)) {
            workshop.qemu_img(&["compare", "-q", "-f", "dmg", "-F", "raw", "disk.dmg", "disk.raw"]);
        }
    }
}

/// An archive with two disks, of which the second is `content`.
fn vma(content: &[u8]) -> Vec<u8> {
    let first = vec![1; 64 << 10];
    make_vma::vma(&[("drive-scsi0", &first[..]), ("drive-scsi1", content)], "memory: 512\n")
}

#[test]
fn a_disk_of_a_vma_is_read_by_its_name() {
    let workshop = Workshop::new(LENGTH);
    let path = workshop.path("backup.vma");
    std::fs::write(&path, vma(&workshop.content)).unwrap();
    let Err(error) = disk::open(&path, &read_only()) else { panic!("no disk was named") };
    assert!(chain(&error).contains("drive-scsi0, drive-scsi1"), "{}", chain(&error));
    let named = |name: &str| ImageOptions { snapshot: Some(name.to_owned()), ..read_only() };
    let (disk, infos) = disk::open_chain(&path, &named("drive-scsi1")).unwrap();
    assert_eq!((infos[0].format, disk.len()), (Format::Vma, LENGTH as u64));
    assert_eq!(infos[0].snapshots.len(), 2);
    assert_disk_holds(&*disk, &workshop.content, "VMA");
    let disk = disk::open(&path, &named("drive-scsi0")).unwrap();
    assert_disk_holds(&*disk, &[1; 64 << 10], "the other disk");
    assert!(disk::open(&path, &named("drive-scsi2")).is_err());
    // As a folder, whether gzip has compressed it or not, with what describes the VM.
    let packed = workshop.path("backup.vma.gz");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    Write::write_all(&mut encoder, &std::fs::read(&path).unwrap()).unwrap();
    std::fs::write(&packed, encoder.finish().unwrap()).unwrap();
    for archive in [&path, &packed] {
        let (disk, infos) = disk::open_chain(archive.join("drive-scsi1"), &read_only()).unwrap();
        assert_eq!(infos[0].path, archive.join("drive-scsi1"));
        assert_disk_holds(&*disk, &workshop.content, "VMA");
        assert!(disk::open(archive.join("drive-scsi2"), &read_only()).is_err());
    }
    let source = disk::FileSource::open(&path, true).unwrap();
    let contents = disk::vma_contents(&source).unwrap().unwrap();
    assert_eq!(contents.disks, ["drive-scsi0", "drive-scsi1"]);
    let wanted = ("qemu-server.conf".to_owned(), b"memory: 512\n".to_vec());
    assert_eq!(contents.configurations, [wanted]);
    // A backup that broke off.
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 4096]).unwrap();
    let Err(error) = disk::open(&path, &named("drive-scsi1")) else { panic!("half a backup") };
    assert!(chain(&error).contains("cut off"), "{}", chain(&error));
}

fn tar_member(bytes: &mut Vec<u8>, name: &str, content: &[u8]) {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[257..263].copy_from_slice(b"ustar\0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}

/// An archive of one disk; the checksums are SHA-1 as XenServer's, or as XCP-ng's those of `xxhash`.
fn xva(content: &[u8]) -> Vec<u8> {
    use sha1::Digest;
    let mut bytes = Vec::new();
    tar_member(&mut bytes, "ova.xml", b"<?xml version=\"1.0\"?>\n<value></value>\n");
    let count = content.len().div_ceil(1 << 20);
    for (number, block) in content.chunks(1 << 20).enumerate() {
        if block.iter().all(|&byte| byte == 0) && number + 1 != count {
            continue;
        }
        tar_member(&mut bytes, &format!("Ref:7/{number:08}"), block);
        let digest: String =
            sha1::Sha1::digest(block).iter().map(|byte| format!("{byte:02x}")).collect();
        tar_member(&mut bytes, &format!("Ref:7/{number:08}.checksum"), digest.as_bytes());
    }
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

#[test]
fn the_disk_of_an_xva_is_read_and_its_blocks_are_checked() {
    let workshop = Workshop::new(LENGTH);
    let path = workshop.path("machine.xva");
    let mut content = workshop.content.clone();
    content[1 << 20..2 << 20].fill(0);
    let bytes = xva(&content);
    std::fs::write(&path, &bytes).unwrap();
    let (disk, infos) = disk::open_chain(&path, &read_only()).unwrap();
    assert_eq!((infos[0].format, disk.len()), (Format::Raw, LENGTH as u64));
    let mut found = vec![0; LENGTH];
    disk.read_at(&mut found, 0).unwrap();
    assert!(found == content);
    drop(disk);
    // One bit of the first block.
    let mut wrong = bytes;
    let at = wrong.windows(14).position(|part| part == b"Ref:7/00000000").unwrap() + 512 + 4000;
    wrong[at] ^= 1;
    std::fs::write(&path, wrong).unwrap();
    let disk = open(&path);
    let error = disk.read_at(&mut found[..512], 0).unwrap_err();
    assert!(chain(&error).contains("checksum"), "{}", chain(&error));
    disk.read_at(&mut found[..512], 2 << 20).unwrap();
}

/// An image of chunks of 64 KiB with sectors of 512 bytes: whole chunks, partial ones and absent ones.
fn asif(content: &[u8]) -> Vec<u8> {
    const CHUNK: usize = 64 << 10;
    const PER_GROUP: usize = 2048;
    let mut bytes = vec![0; 3 * CHUNK];
    let put = |bytes: &mut Vec<u8>, at: usize, value: u64| {
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    };
    bytes[..4].copy_from_slice(b"shdw");
    bytes[4..8].copy_from_slice(&1_u32.to_be_bytes());
    bytes[8..12].copy_from_slice(&512_u32.to_be_bytes());
    put(&mut bytes, 16, 1024);
    put(&mut bytes, 24, 2048);
    put(&mut bytes, 0x30, (content.len() / SECTOR) as u64);
    put(&mut bytes, 0x38, 1 << 30);
    bytes[0x40..0x44].copy_from_slice(&(CHUNK as u32).to_be_bytes());
    bytes[0x44..0x46].copy_from_slice(&512_u16.to_be_bytes());
    // The second directory is the newer one. Its first table is chunk 1, whose bitmaps are chunk 2.
    put(&mut bytes, 1024, 4);
    put(&mut bytes, 2048, 5);
    put(&mut bytes, 2056, 1);
    put(&mut bytes, CHUNK + PER_GROUP * 8, 2);
    for (number, part) in content.chunks(CHUNK).enumerate() {
        let sectors: Vec<bool> =
            part.chunks(SECTOR).map(|sector| sector.iter().any(|&byte| byte != 0)).collect();
        if !sectors.contains(&true) {
            continue;
        }
        let chunk = (bytes.len() / CHUNK) as u64;
        let is_whole = sectors.len() == CHUNK / SECTOR && !sectors.contains(&false);
        let state = if is_whole { 1_u64 } else { 3 };
        put(&mut bytes, CHUNK + number * 8, state << 62 | chunk);
        for (sector, _) in
            sectors.iter().enumerate().filter(|(_, is_there)| **is_there && !is_whole)
        {
            let sector = number * (CHUNK / SECTOR) + sector;
            bytes[2 * CHUNK + sector / 4] |= 1 << (sector % 4 * 2);
        }
        // What was never written may be anything.
        let mut stored = part.to_vec();
        stored.resize(CHUNK, 0);
        for (sector, part) in stored.chunks_mut(SECTOR).enumerate() {
            if sectors.get(sector) != Some(&true) {
                part.fill(0xba);
            }
        }
        bytes.extend_from_slice(&stored);
    }
    bytes
}

#[test]
fn asif_is_read_as_far_as_it_is_known() {
    let workshop = Workshop::new(LENGTH);
    let path = workshop.path("disk.asif");
    // The table has to be as small as its chunk here, so it has 64 KiB / 8 entries at most.
    let mut bytes = asif(&workshop.content);
    std::fs::write(&path, &bytes).unwrap();
    let (disk, infos) = disk::open_chain(&path, &read_only()).unwrap();
    assert_eq!((infos[0].format, disk.len()), (Format::Asif, LENGTH as u64));
    assert_disk_holds(&*disk, &workshop.content, "ASIF");
    drop(disk);
    let first = 64 << 10;
    bytes[first] = 0x80 | bytes[first] & 0x3f;
    std::fs::write(&path, &bytes).unwrap();
    let error = open(&path).read_at(&mut [0; 512], 0).unwrap_err();
    assert!(chain(&error).contains("state 2"), "{}", chain(&error));
}

#[test]
fn archives_that_are_cut_off_anywhere_neither_panic_nor_hang() {
    let workshop = Workshop::new(1 << 20);
    let mut content = workshop.content.clone();
    content.resize(2 << 20, 3);
    let whole = [
        (Format::Dmg, dmg(&content, &[DMG_ZLIB])),
        (Format::Dmg, dmg(&content, &[DMG_ADC])),
        (Format::Dmg, dmg(&content, &[DMG_LZFSE])),
        (Format::Vma, vma(&content)),
        (Format::Asif, asif(&content)),
    ];
    let path = workshop.path("cut");
    for (format, bytes) in whole {
        for cut in 0..90 {
            // From the start, or from the end, where trailers are; or a byte is another one.
            let at = (bytes.len() / 30 * (cut / 3) + cut).min(bytes.len() - 1);
            let mut changed = bytes.clone();
            changed[at] ^= 0x81;
            let part = [&bytes[..at], &bytes[at..], &changed][cut % 3];
            std::fs::write(&path, part).unwrap();
            for snapshot in [None, Some("drive-scsi1".to_owned())] {
                let options = ImageOptions { format: Some(format), snapshot, ..read_only() };
                let Ok(disk) = disk::open(&path, &options) else { continue };
                let mut buffer = vec![0; 1 << 16];
                for offset in (0..disk.len().min(8 << 20)).step_by(buffer.len()) {
                    let count = (disk.len() - offset).min(buffer.len() as u64) as usize;
                    let _ = disk.read_at(&mut buffer[..count], offset);
                }
            }
        }
    }
}
