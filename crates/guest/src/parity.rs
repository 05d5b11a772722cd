//! What makes up for missing members of RAID 5 and 6, for arrays, logical volumes and btrfs: P is the sum of a row's data,
//! and Q the sum of its data each times a power of 2, in the field of 2^8 elements (H. P. Anvin, "The mathematics of RAID-6").

use crate::volume::{Volume, read};
use crate::{Error, Result};

/// The field's polynomial, x^8 + x^4 + x^3 + x^2 + 1, without its highest term.
const POLYNOMIAL: u8 = 0x1d;
/// Powers of 2 before they repeat.
const ORDER: usize = 255;

/// What a member has of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Data; to Q it adds its product with this power of 2.
    Data(usize),
    P,
    Q,
}

/// A member's part of a row.
pub struct Share<'a> {
    pub role: Role,
    /// Where it is; `None` if that is not there.
    pub at: Option<(&'a dyn Volume, u64)>,
}

/// Fills `buffer` with data that is missing or cannot be read: that with this power of 2 in its row.
pub fn restore(buffer: &mut [u8], wanted: usize, row: &[Share<'_>]) -> Result<()> {
    let missing = || Error::unsupported("array", "too many of its members are missing");
    let has = |role| row.iter().any(|share| share.role == role && share.at.is_some());
    let mut others = row.iter().filter_map(|share| match share.role {
        Role::Data(power) if power != wanted && share.at.is_none() => Some(power),
        _ => None,
    });
    let (other, more) = (others.next(), others.next());
    let is_q_needed = other.is_some() || !has(Role::P);
    let enough = more.is_none() && (has(Role::Q) || !is_q_needed);
    if !enough || other.is_some() && !has(Role::P) {
        return Err(missing());
    }
    // What of each sum the data that is there does not make up.
    let (mut q, p) = (vec![0; buffer.len()], buffer);
    p.fill(0);
    for share in row {
        let Some((volume, place)) = share.at else { continue };
        let (in_p, in_q) = match share.role {
            Role::Data(power) if power == wanted => continue,
            Role::Data(power) => (1, power_of_2(power)),
            Role::P => (1, 0),
            Role::Q if !is_q_needed => continue,
            Role::Q => (0, 1),
        };
        let bytes = read(volume, place, p.len())?;
        add(p, &bytes, in_p);
        if is_q_needed {
            add(&mut q, &bytes, in_q);
        }
    }
    let a = power_of_2(wanted);
    match other {
        None if is_q_needed => scale(&mut q, inverse(a)),
        None => return Ok(()),
        // With x and y what is wanted and the other: P is x + y, and Q is ax + by.
        Some(other) => {
            let b = power_of_2(other);
            if a == b {
                return Err(missing());
            }
            add(&mut q, p, b);
            scale(&mut q, inverse(a ^ b));
        }
    }
    p.copy_from_slice(&q);
    Ok(())
}

/// Adds `bytes` times `factor`.
fn add(buffer: &mut [u8], bytes: &[u8], factor: u8) {
    let products = products(factor);
    buffer.iter_mut().zip(bytes).for_each(|(sum, byte)| *sum ^= products[usize::from(*byte)]);
}

fn scale(buffer: &mut [u8], factor: u8) {
    let products = products(factor);
    buffer.iter_mut().for_each(|byte| *byte = products[usize::from(*byte)]);
}

/// A factor's products with every byte.
fn products(factor: u8) -> [u8; 256] {
    std::array::from_fn(|byte| multiply(byte as u8, factor))
}

fn multiply(mut a: u8, b: u8) -> u8 {
    let mut product = 0;
    for bit in 0..8 {
        if b >> bit & 1 != 0 {
            product ^= a;
        }
        a = a << 1 ^ if a >> 7 != 0 { POLYNOMIAL } else { 0 };
    }
    product
}

fn power_of_2(power: usize) -> u8 {
    (0..power % ORDER).fold(1, |product, _| multiply(product, 2))
}

/// The number whose product with `factor`, which is not 0, is 1.
fn inverse(factor: u8) -> u8 {
    (1..ORDER).fold(1, |product, _| multiply(product, factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Memory;

    #[test]
    fn every_number_has_an_inverse() {
        for factor in 1..=255 {
            assert_eq!(multiply(factor, inverse(factor)), 1);
        }
        // The field's generator is 2, and 2^8 is what the polynomial says.
        assert_eq!((power_of_2(8), power_of_2(255), power_of_2(1)), (POLYNOMIAL, 1, 2));
    }

    /// A row, of each member what it has and its byte.
    fn row() -> Vec<(Role, Memory)> {
        let data = [0x5a, 0xff, 0x01, 0x80, 0x00, 0xc3];
        let p = data.iter().fold(0, |sum, byte| sum ^ byte);
        // By Horner's rule, as Anvin computes it.
        let q = data.iter().rev().fold(0, |sum, byte| multiply(sum, 2) ^ byte);
        let data = data.into_iter().enumerate().map(|(index, byte)| (Role::Data(index), byte));
        let all = data.chain([(Role::P, p), (Role::Q, q)]);
        all.map(|(role, byte)| (role, Memory(vec![byte]))).collect()
    }

    #[test]
    fn any_two_members_are_made_up_for_and_not_three() {
        let row = row();
        let restored = |wanted, missing: &[usize]| {
            let shares = row.iter().enumerate().map(|(index, (role, memory))| Share {
                role: *role,
                at: (!missing.contains(&index)).then_some((memory as &dyn Volume, 0)),
            });
            let shares: Vec<_> = shares.collect();
            let mut buffer = [0];
            restore(&mut buffer, wanted, &shares).map(|()| buffer[0])
        };
        for (wanted, (_, memory)) in row.iter().enumerate().take(6) {
            for other in 0..8 {
                assert_eq!(restored(wanted, &[wanted, other]).unwrap(), memory.0[0]);
                for third in (0..8).filter(|third| ![wanted, other].contains(third)) {
                    let lost = restored(wanted, &[wanted, other, third]);
                    assert_eq!(lost.is_err(), wanted != other);
                }
            }
        }
    }
}
