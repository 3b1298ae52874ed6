//! A key in shares: any `threshold` of them give it, and fewer say nothing about it.
//!
//! Shamir's scheme, byte by byte over GF(2^8) with the polynomial of AES (FIPS 197 §4.2): each byte of the key is the constant term of a
//! random polynomial of degree `threshold - 1`, and share `i` holds the values at `i`. An operator's machine divides and a vault
//! combines, so both are here.
//!
//! Nothing here tells a wrong share from a right one: any shares give some key. Whether it is the key shows where it opens something.
//!
//! No table is looked up and nothing branches by a byte of a key or share. The indices are public.

use std::fmt;
use std::hint::black_box;

use zeroize::Zeroizing;

/// Length of a key and of a share in bytes.
pub const KEY: usize = 32;

/// One share of a key.
#[derive(Clone)]
pub struct Share {
    /// Which one: from 1.
    pub index: u8,
    /// The values at `index`.
    pub bytes: Zeroizing<[u8; KEY]>,
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[redacted:share {}]", self.index)
    }
}

/// Why a key is not divided, or shares are not combined. Never anything about their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SharesError {
    /// Fewer than two are needed, or more than there are.
    #[error("{threshold} of {shares} shares is no division of a key")]
    Numbers {
        /// How many are needed.
        threshold: u8,
        /// How many there are.
        shares: u8,
    },
    /// No shares, an index of 0, or one twice.
    #[error("the shares do not have different numbers from 1")]
    Indices,
    /// The source of random numbers failed.
    #[error("no random numbers")]
    Random,
}

/// Divides a key. `random` fills a buffer with random bytes, or says that it cannot.
///
/// # Errors
/// [`SharesError`].
pub fn split<E>(
    key: &[u8; KEY],
    threshold: u8,
    shares: u8,
    mut random: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Vec<Share>, SharesError> {
    if threshold < 2 || threshold > shares {
        return Err(SharesError::Numbers { threshold, shares });
    }
    // Of each power from the highest down to 1.
    let mut coefficients = Zeroizing::new(vec![[0; KEY]; usize::from(threshold) - 1]);
    random(coefficients.as_flattened_mut()).map_err(|_| SharesError::Random)?;
    let share = |index| {
        let mut bytes = Zeroizing::new([0; KEY]);
        for coefficient in coefficients.iter().chain([key]) {
            bytes.iter_mut().zip(coefficient).for_each(|(byte, term)| *byte = multiply(*byte, index) ^ term);
        }
        Share { index, bytes }
    };
    Ok((1..=shares).map(share).collect())
}

/// The key of these shares: the right one when they are of one division and at least its threshold.
///
/// # Errors
/// [`SharesError::Indices`].
pub fn combine(shares: &[Share]) -> Result<Zeroizing<[u8; KEY]>, SharesError> {
    if shares.is_empty() {
        return Err(SharesError::Indices);
    }
    let mut key = Zeroizing::new([0; KEY]);
    for (place, share) in shares.iter().enumerate() {
        // Lagrange's polynomial of this share at 0.
        let mut weight = 1;
        for (other_place, other) in shares.iter().enumerate() {
            if other_place != place {
                // 0 where two are the same, and 0 has no inverse.
                let difference = share.index ^ other.index;
                if difference == 0 {
                    return Err(SharesError::Indices);
                }
                weight = multiply(weight, multiply(other.index, invert(difference)));
            }
        }
        if share.index == 0 {
            return Err(SharesError::Indices);
        }
        key.iter_mut().zip(&*share.bytes).for_each(|(byte, value)| *byte ^= multiply(*value, weight));
    }
    Ok(key)
}

/// The product in GF(2^8), in the same steps whatever the factors are.
fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    for _ in 0..8 {
        product ^= a & black_box((b & 1).wrapping_neg());
        a = (a << 1) ^ (0x1b & black_box((a >> 7).wrapping_neg()));
        b >>= 1;
    }
    product
}

/// The 254th power, which is the inverse of all but 0.
fn invert(a: u8) -> u8 {
    let mut power = a;
    for _ in 0..6 {
        power = multiply(multiply(power, power), a);
    }
    multiply(power, power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(from: u8) -> impl FnMut(&mut [u8]) -> Result<(), ()> {
        move |buffer| {
            (from..=u8::MAX).cycle().zip(buffer).for_each(|(value, byte)| *byte = value);
            Ok(())
        }
    }

    #[test]
    fn it_is_the_field_of_aes() {
        // FIPS 197 §4.2 and §4.2.1.
        assert_eq!(multiply(0x57, 0x83), 0xc1);
        assert_eq!(multiply(0x57, 0x13), 0xfe);
        for a in 1..=u8::MAX {
            assert_eq!(multiply(a, invert(a)), 1, "{a}");
            assert_eq!((multiply(a, 1), multiply(a, 0)), (a, 0));
        }
    }

    #[test]
    fn every_choice_of_enough_shares_gives_the_key_and_no_smaller_one() {
        let key: [u8; KEY] = std::array::from_fn(|place| place as u8 * 7);
        for (threshold, number) in [(2, 2), (2, 3), (3, 5), (5, 5)] {
            let shares = split(&key, threshold, number, counting(9)).unwrap();
            assert_eq!(shares.len(), usize::from(number));
            for choice in 1_u32..1 << number {
                let chosen: Vec<Share> =
                    shares.iter().filter(|share| choice & (1 << (share.index - 1)) != 0).cloned().collect();
                let combined = combine(&chosen).unwrap();
                assert_eq!(*combined == key, chosen.len() >= usize::from(threshold), "{chosen:?}");
            }
        }
        let shares = split(&key, 16, 16, counting(1)).unwrap();
        assert_eq!(*combine(&shares).unwrap(), key);
    }

    /// A single share has every value for every key: with a threshold of 2 and the coefficient `c`, share 1 is `key ^ c`.
    #[test]
    fn one_share_of_two_says_nothing() {
        for first in 0..=u8::MAX {
            let mut key = [0; KEY];
            key[0] = first;
            let fill = |buffer: &mut [u8]| {
                buffer.fill(first ^ 0x5a);
                Ok::<(), ()>(())
            };
            assert_eq!(split(&key, 2, 2, fill).unwrap()[0].bytes[0], 0x5a);
        }
    }

    #[test]
    fn what_is_no_division_is_refused() {
        for (threshold, shares) in [(0, 0), (0, 3), (1, 1), (1, 5), (3, 2)] {
            let refused = split(&[1; KEY], threshold, shares, counting(0)).unwrap_err();
            assert_eq!(refused, SharesError::Numbers { threshold, shares });
        }
        assert_eq!(split(&[1; KEY], 2, 3, |_| Err(())).unwrap_err(), SharesError::Random);
        let share = |index| Share { index, bytes: Zeroizing::new([1; KEY]) };
        for wrong in [vec![], vec![share(0)], vec![share(0), share(1)], vec![share(2), share(3), share(2)]] {
            assert_eq!(combine(&wrong).unwrap_err(), SharesError::Indices, "{wrong:?}");
        }
        assert_eq!(format!("{:?}", share(3)), "[redacted:share 3]");
    }
}
