//! The filter in front of the matcher: which places of the output can possibly begin a pattern.
//!
//! Every pattern leaves the four-byte groups of its first symbols in a bitmap. Output is sampled: when all patterns
//! have at least eight symbols, any eight bytes in a row that begin a pattern as they stand contain a group at one of
//! every five places, so looking at one place in five finds them all. Places near an escape, a colour or a line
//! break are looked at one by one, after reading the escapes. So the cost on clean output does not grow with the
//! number of secrets, until the bitmap fills.

use zeroize::Zeroize;

use crate::pattern::{Class, Pattern, Patterns, spellings};

/// Bytes in a group.
pub(crate) const GROUP: usize = 4;
/// Sampling further apart would be faster for long secrets only, and makes more places to look at near
/// line breaks.
pub(crate) const MAX_STRIDE: usize = 5;
/// The bitmap has this many bits for each group in it, so that one place in 64 of clean output is looked
/// at for nothing.
const BITS_PER_GROUP: usize = 64;
/// 8 KiB to 128 KiB: from well inside the first cache to well inside the second.
const BITMAP_BITS: std::ops::RangeInclusive<u32> = 16..=20;

/// Knuth's multiplier: the high bits of the product depend on all bits of the group.
const HASH: u32 = 0x9e37_79b1;
/// One bucket of places for 64 bits of the bitmap, so about one place in each.
const BUCKET_SHIFT: u32 = 6;
/// 16 KiB: a few thousand beginnings leave most of it empty.
const BEGINNINGS_BITS: u32 = 17;

/// What programs write between the bytes of hexadecimal: nothing, `openssl`, `od`, `hexdump`, C.
pub(crate) const HEX_SEPARATORS: [&[u8]; 9] = [b"", b":", b" ", b"  ", b"-", b",", b" 0x", b",0x", b", 0x"];

/// Where in which pattern a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    group: u32,
    pub(crate) pattern: u32,
    /// Bytes of output between the pattern's start and the group.
    pub(crate) offset: usize,
}

pub(crate) struct Index {
    bitmap: Vec<u64>,
    shift: u32,
    /// The first two and the first three bytes of every group that a pattern begins with.
    beginnings: Vec<u64>,
    /// In the order of their buckets.
    places: Vec<Place>,
    /// Where each bucket begins among the places, and where the last one ends.
    buckets: Vec<u32>,
    /// The patterns that a byte as it stands can begin.
    by_first: Vec<Vec<u32>>,
    stride: usize,
    /// Whether a pattern has a quote among its first symbols, which a shell writes as an escape.
    pub(crate) quotes: bool,
}

impl Index {
    pub(crate) fn new(patterns: &Patterns) -> Self {
        let shortest =
            patterns.iter().map(|(_, pattern)| patterns.symbols(pattern).len()).min().unwrap_or(GROUP);
        let stride = (shortest + 1).saturating_sub(GROUP).clamp(1, MAX_STRIDE);
        let mut by_first = vec![Vec::new(); 256];
        let mut places = Vec::new();
        let mut quotes = false;
        for (id, pattern) in patterns.iter() {
            let symbols = patterns.symbols(pattern);
            for byte in symbols.first().into_iter().flat_map(|first| spellings(pattern.class, *first)) {
                if let Some(ids) = by_first.get_mut(usize::from(byte)) {
                    ids.push(id);
                }
            }
            quotes |= symbols.iter().take(GROUP + stride).any(|symbol| *symbol == b'\'');
            heads(pattern, symbols, stride, |offset, group| {
                places.push(Place { group, pattern: id, offset })
            });
        }
        places.sort_unstable();
        places.dedup();
        let bits = (places.len() * BITS_PER_GROUP).next_power_of_two().trailing_zeros();
        let bits = bits.clamp(*BITMAP_BITS.start(), *BITMAP_BITS.end());
        let mut index = Self {
            bitmap: vec![0; 1 << (bits - 6)],
            shift: 32 - bits,
            beginnings: vec![0; 1 << (BEGINNINGS_BITS - 6)],
            places: Vec::new(),
            buckets: vec![0; (1 << bits >> BUCKET_SHIFT) + 1],
            by_first,
            stride,
            quotes,
        };
        for place in &places {
            let (word, bit) = index.bit(place.group);
            if let Some(word) = index.bitmap.get_mut(word) {
                *word |= bit;
            }
            for count in [2, 3].into_iter().filter(|_| place.offset == 0) {
                let (word, bit) = beginning_bit(place.group, count);
                if let Some(word) = index.beginnings.get_mut(word) {
                    *word |= bit;
                }
            }
        }
        places.sort_by_key(|place| index.bucket(place.group));
        for place in &places {
            let bucket = index.bucket(place.group);
            if let Some(count) = index.buckets.get_mut(bucket + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for bound in &mut index.buckets {
            sum += *bound;
            *bound = sum;
        }
        index.places = places;
        index
    }

    /// Look at one place in this many; 1 to 5.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// A pattern that begins at least this many bytes before an escape or the end is found by sampling.
    pub(crate) fn reach(&self) -> usize {
        GROUP + self.stride - 1
    }

    /// Whether a group may be in the index.
    #[inline]
    pub(crate) fn may_contain(&self, group: u32) -> bool {
        let (word, bit) = self.bit(fold(group));
        self.bitmap.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Whether a pattern may begin with the first bytes of this group, of which there are `count`.
    #[inline]
    pub(crate) fn may_begin(&self, group: u32, count: u32) -> bool {
        if count < 2 {
            return true;
        }
        let (word, bit) = beginning_bit(fold(group), count);
        self.beginnings.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Where a group stands.
    pub(crate) fn places(&self, group: u32) -> impl Iterator<Item = &Place> {
        let group = fold(group);
        let bucket = self.bucket(group);
        let bound = |bucket: usize| self.buckets.get(bucket).map_or(0, |bound| *bound as usize);
        let places = self.places.get(bound(bucket)..bound(bucket + 1)).unwrap_or_default();
        places.iter().filter(move |place| place.group == group)
    }

    /// The patterns that this byte as it stands can begin.
    pub(crate) fn beginning_with(&self, byte: u8) -> &[u32] {
        self.by_first.get(usize::from(byte)).map_or(&[], Vec::as_slice)
    }

    fn bucket(&self, group: u32) -> usize {
        (group.wrapping_mul(HASH) >> self.shift >> BUCKET_SHIFT) as usize
    }

    #[inline]
    fn bit(&self, group: u32) -> (usize, u64) {
        let hash = group.wrapping_mul(HASH) >> self.shift;
        ((hash >> 6) as usize, 1 << (hash & 63))
    }
}

impl Drop for Index {
    /// The groups are pieces of secrets.
    fn drop(&mut self) {
        self.bitmap.zeroize();
        self.beginnings.zeroize();
        for place in &mut self.places {
            place.group.zeroize();
        }
    }
}

/// Two bytes, or three when there are more.
#[inline]
fn beginning_bit(group: u32, count: u32) -> (usize, u64) {
    let known = if count == 2 { group & 0xffff } else { group & 0x00ff_ffff | 1 << 24 };
    let hash = known.wrapping_mul(HASH) >> (32 - BEGINNINGS_BITS);
    ((hash >> 6) as usize, 1 << (hash & 63))
}

/// Case does not count in a group: hexadecimal has either, and for the rest it costs a few more looks.
#[inline]
fn fold(group: u32) -> u32 {
    group | 0x2020_2020
}

/// Every group of a pattern's first symbols, in every spelling without an escape.
fn heads(pattern: &Pattern, symbols: &[u8], stride: usize, mut add: impl FnMut(usize, u32)) {
    if pattern.class == Class::Hex {
        let mut text = Vec::with_capacity(32);
        separated(&mut text, symbols, GROUP + stride - 1, &mut |text| {
            for (offset, group) in text.windows(GROUP).take(stride).enumerate() {
                if let [a, b, c, d] = *group {
                    add(offset, fold(u32::from_le_bytes([a, b, c, d])));
                }
            }
        });
        text.zeroize();
        return;
    }
    for (offset, group) in symbols.windows(GROUP).take(stride).enumerate() {
        let mut groups = vec![0_u32];
        for (index, symbol) in (0..).zip(group) {
            let spelt = |group: &u32, byte: u8| group | u32::from(byte) << (8 * index);
            groups = groups
                .iter()
                .flat_map(|group| spellings(pattern.class, *symbol).map(move |byte| spelt(group, byte)))
                .collect();
        }
        groups.into_iter().for_each(|group| add(offset, fold(group)));
    }
}

/// Every way to write the first bytes of hexadecimal with separators, up to `length` characters.
fn separated(text: &mut Vec<u8>, digits: &[u8], length: usize, add: &mut impl FnMut(&[u8])) {
    let (byte, rest) = digits.split_at_checked(2).unwrap_or((digits, &[]));
    let before = text.len();
    text.extend_from_slice(byte);
    if text.len() >= length || rest.is_empty() {
        add(text);
    } else {
        for separator in HEX_SEPARATORS {
            let end = text.len();
            text.extend_from_slice(separator);
            separated(text, rest, length, add);
            text.truncate(end);
        }
    }
    text.truncate(before);
}
