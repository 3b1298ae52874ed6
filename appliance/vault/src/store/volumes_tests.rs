//! Places never overlap, never move and are the first that fit, whatever is declared in whatever order.

use proptest::prelude::*;

use super::volumes::{self, Volume, VolumeError, Wanted};

const MIB: u64 = 1 << 20;
const START: u64 = crate::state::STORE.end;

fn wanted(name: &str, mib: u64) -> Wanted {
    Wanted { name: name.to_owned(), size: mib * MIB }
}

/// Places all of them on a disk with so many MiB for volumes.
fn place(table: &mut volumes::Table, list: &[Wanted], mib: u64) -> Result<Vec<(Volume, bool)>, VolumeError> {
    let mut last = 0;
    let mut next = |id: &mut [u8]| {
        last += 1;
        id.fill(last);
        true
    };
    volumes::place(table, list, START + mib * MIB, &mut next)
}

/// Which MiB are taken, counted one by one.
fn taken(table: &volumes::Table, mib: u64) -> Vec<bool> {
    let mut taken = vec![false; usize::try_from(mib).unwrap()];
    for Volume { offset, length, .. } in table.values() {
        assert!(*offset >= START && offset % MIB == 0 && length % MIB == 0);
        for piece in (offset - START) / MIB..(offset + length - START) / MIB {
            let piece = &mut taken[usize::try_from(piece).unwrap()];
            assert!(!*piece, "two volumes at one place: {table:?}");
            *piece = true;
        }
    }
    taken
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn no_two_overlap_none_moves_and_each_is_at_the_first_gap(
        rounds in prop::collection::vec(prop::collection::btree_map(0_u8..24, 1_u64..40, 0..12), 1..8),
        mib in 1_u64..300,
        dropped in prop::collection::vec(0_u8..24, 0..6),
    ) {
        let mut table = volumes::Table::new();
        for (number, declared) in rounds.iter().enumerate() {
            let list: Vec<Wanted> =
                declared.iter().map(|(name, mib)| wanted(&format!("v{name}"), *mib)).collect();
            let before = table.clone();
            let mut tried = table.clone();
            match place(&mut tried, &list, mib) {
                Ok(placed) => {
                    prop_assert_eq!(placed.len(), list.len());
                    let mut known = before.clone();
                    for (wanted, (volume, new)) in list.iter().zip(&placed) {
                        prop_assert_eq!(volume.length, wanted.size);
                        prop_assert_eq!(*new, !known.contains_key(&wanted.name));
                        if *new {
                            let pieces = usize::try_from(wanted.size / MIB).unwrap();
                            let map = taken(&known, mib);
                            let first = map.windows(pieces).position(|window| !window.contains(&true)).unwrap();
                            prop_assert_eq!(volume.offset, START + first as u64 * MIB);
                            prop_assert!(!volume.made);
                        } else {
                            prop_assert_eq!(&known[&wanted.name], volume);
                        }
                        known.insert(wanted.name.clone(), volume.clone());
                    }
                    prop_assert_eq!(&known, &tried);
                    table = tried;
                }
                Err(VolumeError::SizeChanged { name, there, declared }) => {
                    prop_assert_eq!(before[&name].length, there);
                    prop_assert!(there != declared);
                }
                Err(VolumeError::NoRoom { wanted, free, largest, .. }) => {
                    prop_assert!(largest < wanted && largest <= free && free <= mib * MIB);
                }
                Err(error) => prop_assert!(false, "{error}"),
            }
            taken(&table, mib);
            for (name, volume) in &before {
                prop_assert_eq!(&table[name], volume, "a place moved");
            }
            // No release forgets one today; the first gap is found in a table with gaps all the same.
            if number % 2 == 1 {
                table.retain(|name, _| !dropped.iter().any(|number| *name == format!("v{number}")));
            }
        }
    }

    #[test]
    fn a_row_is_read_as_it_was_written_or_not_at_all(bytes in prop::array::uniform32(any::<u8>()), last in 0_u8..4) {
        let row: [u8; 33] = [&bytes[..], &[last]].concat().try_into().unwrap();
        if let Some(volume) = volumes::decode(&row) {
            prop_assert_eq!(volumes::encode(&volume), row);
        }
    }
}

#[test]
fn thirty_two_volumes_fill_a_disk_and_the_next_one_has_no_room() {
    let mut table = volumes::Table::new();
    let all: Vec<Wanted> = (0..32).map(|number| wanted(&format!("v{number}"), 32)).collect();
    let placed = place(&mut table, &all, 32 * 32).unwrap();
    let end = placed.iter().map(|(volume, _)| volume.offset + volume.length).max().unwrap();
    assert_eq!(end, START + 32 * 32 * MIB);
    let ids: std::collections::BTreeSet<_> = placed.iter().map(|(volume, _)| volume.id).collect();
    assert_eq!(ids.len(), 32);
    let error = place(&mut table, &[wanted("one-more", 1)], 32 * 32).unwrap_err();
    let text = "there is no room for the volume one-more: it takes 1 MiB, and of the state disk's free 0 MiB the largest piece has 0";
    assert_eq!(error.to_string(), text);
    // A disk that ends in the middle of a MiB, or before the first volume, has that much less.
    let odd = |end| volumes::place(&mut volumes::Table::new(), &[wanted("a", 1)], end, &mut |_| true);
    for end in [0, START, START + MIB - 1] {
        assert!(matches!(odd(end), Err(VolumeError::NoRoom { free: 0, .. })), "{end}");
    }
    assert!(odd(START + MIB + 1).is_ok());
    assert!(matches!(odd(u64::MAX), Ok(placed) if placed[0].0.offset == START));
}

#[test]
fn what_no_table_holds_is_refused() {
    let volume = |offset: u64, length: u64| Volume { offset, length, id: [1; 16], made: true };
    let tables = [
        vec![("a", volume(START, 2 * MIB)), ("b", volume(START + MIB, MIB))],
        vec![("a", volume(START, MIB)), ("b", volume(START, MIB))],
        vec![("a", volume(START - MIB, MIB))],
        vec![("a", volume(START + 9 * MIB, 2 * MIB))],
        vec![("a", volume(u64::MAX - MIB + 1, MIB))],
    ];
    for rows in tables {
        let mut table: volumes::Table = rows.into_iter().map(|(name, row)| (name.to_owned(), row)).collect();
        let before = table.clone();
        assert!(
            matches!(place(&mut table, &[wanted("new", 1)], 10), Err(VolumeError::Table(_))),
            "{before:?}"
        );
        assert_eq!(table, before);
    }
    for size in [0, MIB - 1, MIB + 1] {
        let odd = Wanted { name: "odd".into(), size };
        let mut table = volumes::Table::new();
        assert!(matches!(place(&mut table, &[odd], 10), Err(VolumeError::Size(_))));
    }
    let error = volumes::place(&mut volumes::Table::new(), &[wanted("a", 1)], START + MIB, &mut |_| false);
    assert!(matches!(error, Err(VolumeError::Random)));
    let name = |number: usize| format!("v{number}");
    let mut table: volumes::Table =
        (0..1024).map(|number| (name(number), volume(START + number as u64 * MIB, MIB))).collect();
    assert!(matches!(place(&mut table, &[wanted("new", 1)], 2000), Err(VolumeError::TooMany)));
}

#[test]
fn rows_and_keys_are_those_of_the_vectors() {
    use base64::Engine as _;
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../../../../policy/vectors/volumes.json")).unwrap();
    let bytes = |value: &serde_json::Value| {
        base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap()
    };
    let of_all: [u8; 32] = bytes(&vectors["volumes_key"]).try_into().unwrap();
    let rows = vectors["rows"].as_array().unwrap();
    assert!(rows.len() >= 3);
    for row in rows {
        let number = |name: &str| row[name].as_str().unwrap().parse().unwrap();
        let volume = Volume {
            offset: number("offset"),
            length: number("length"),
            id: bytes(&row["id"]).try_into().unwrap(),
            made: row["made"].as_bool().unwrap(),
        };
        assert_eq!(volumes::encode(&volume).to_vec(), bytes(&row["row"]));
        assert_eq!(crate::state::volume_key(&of_all, &volume.id).unwrap().to_vec(), bytes(&row["key"]));
    }
    let refused = vectors["refused"].as_array().unwrap();
    assert!(refused.len() >= 4);
    for row in refused {
        assert_eq!(volumes::decode(&bytes(&row["row"]).try_into().unwrap()), None, "{row}");
    }
}
