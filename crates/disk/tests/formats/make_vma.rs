//! Archives of `vzdump`, which no program here makes: for the tests here, and for those of whole VMs.

const CLUSTER: usize = 64 << 10;
const BLOCK: usize = 4096;
const HEADER: usize = 12288;

/// An archive with these disks, the later ones first and from their end, as backups write them in any order.
pub fn vma(disks: &[(&str, &[u8])], configuration: &str) -> Vec<u8> {
    let mut blobs = vec![0];
    let mut blob = |bytes: &[u8]| {
        let at = blobs.len() as u32;
        blobs.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        blobs.extend_from_slice(bytes);
        at
    };
    let names: Vec<u32> =
        disks.iter().map(|(name, _)| blob(format!("{name}\0").as_bytes())).collect();
    let configuration = [blob(b"qemu-server.conf\0"), blob(configuration.as_bytes())];
    let header_size = (HEADER + blobs.len()).next_multiple_of(512);
    let mut bytes = vec![0; header_size];
    bytes[..4].copy_from_slice(b"VMA\0");
    let uuid = [7; 16];
    bytes[8..24].copy_from_slice(&uuid);
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    for (at, value) in [(4, 1), (48, HEADER), (52, blobs.len()), (56, header_size)] {
        put(at, value as u32);
    }
    // Names and contents of files, 256 of each at most.
    put(2044, configuration[0]);
    put(2044 + 1024, configuration[1]);
    for (index, (name, (_, content))) in names.iter().zip(disks).enumerate() {
        let device = 4096 + (index + 1) * 32;
        put(device, *name);
        put(device + 8, (content.len() as u64 >> 32) as u32);
        put(device + 12, content.len() as u32);
    }
    bytes[HEADER..HEADER + blobs.len()].copy_from_slice(&blobs);
    let clusters: Vec<(usize, usize)> = (0..disks.len())
        .rev()
        .flat_map(|disk| {
            (0..disks[disk].1.len().div_ceil(CLUSTER)).rev().map(move |number| (disk, number))
        })
        .collect();
    for group in clusters.chunks(59) {
        let mut header = vec![0; 512];
        header[..4].copy_from_slice(b"VMAE");
        header[8..24].copy_from_slice(&uuid);
        let mut data = Vec::new();
        for (index, &(disk, number)) in group.iter().enumerate() {
            let content = &disks[disk].1[number * CLUSTER..];
            let cluster = &content[..content.len().min(CLUSTER)];
            let mut mask = 0_u16;
            for (bit, block) in cluster.chunks(BLOCK).enumerate() {
                if block.iter().any(|&byte| byte != 0) {
                    mask |= 1 << bit;
                    data.extend_from_slice(block);
                    data.resize(data.len().next_multiple_of(BLOCK), 0);
                }
            }
            let at = 40 + index * 8;
            header[at..at + 2].copy_from_slice(&mask.to_be_bytes());
            header[at + 3] = disk as u8 + 1;
            header[at + 4..at + 8].copy_from_slice(&(number as u32).to_be_bytes());
        }
        header[6..8].copy_from_slice(&((data.len() / BLOCK) as u16).to_be_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&data);
    }
    bytes
}
