//! CRC-32C, the checksum of file systems.

const TABLE: [u32; 256] = {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

/// The Castagnoli CRC of `bytes` behind what gave `start`, without the first and the last inversion.
pub fn crc32c(start: u32, bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(start, |crc, &byte| crc >> 8 ^ TABLE[((crc ^ u32::from(byte)) & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hashed_as_btrfs_does() {
        // The check value of CRC-32C, and btrfs's hash of its default subvolume's name.
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(!1, b"default"), 2_378_154_706);
    }
}
