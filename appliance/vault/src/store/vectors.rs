//! Pages, nodes and records against their frozen vectors, which another implementation of the format has made.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cofferdam_protocol::Digest;
use serde_json::Value;

use super::pages::{associated_data, read};
use super::root::{self, Fields, RECORD};
use super::seal::Sealer;
use super::tree::{self, BLOCK, Entry};
use super::*;
use crate::MasterKey;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../policy/vectors/vault-pages.json")).unwrap()
}

/// Those of records with a journal.
fn with_journal() -> Value {
    serde_json::from_str(include_str!("../../../../policy/vectors/vault-journal.json")).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_str().unwrap().parse().unwrap()
}

fn keys(vectors: &Value) -> Keys {
    Keys::derive(MasterKey::take(&mut array(&vectors["master_key"]))).unwrap()
}

#[test]
fn blocks_are_sealed_and_opened_as_in_the_vectors() {
    let vectors = vectors();
    let keys = keys(&vectors);
    assert_eq!(*keys.pages(), array(&vectors["pages_key"]));
    let sealer = Sealer::new(keys.pages());
    let store = array(&vectors["store"]);
    let disk = MemoryDisk::new(16 * BLOCK);
    for vector in vectors["blocks"].as_array().unwrap() {
        let level = vector["level"].as_u64().unwrap() as usize;
        let (index, epoch) = (number(&vector["index"]), number(&vector["epoch"]));
        let mut plain = bytes(&vector["plain"]);
        plain.resize(BLOCK, 0);
        let nonce = array(&vector["nonce"]);
        let mut sealed = plain.clone();
        let tag = sealer.seal(&nonce, &associated_data(&store, level, index, epoch), &mut sealed).unwrap();
        assert_eq!(Digest::of(&sealed).hex(), vector["sealed_sha256"].as_str().unwrap());
        assert_eq!(sealed[..64], bytes(&vector["sealed_start"]));
        let entry = Entry { block: number(&vector["block"]), epoch, nonce, tag };
        assert_eq!(tree::encode(Some(&entry)), array(&vector["entry"]));
        assert_eq!(tree::decode(&array(&vector["entry"])), Some(entry));
        disk.write_at(entry.block * BLOCK as u64, &sealed).unwrap();
        let opened = read(&disk, &sealer, &store, level, index, &entry).unwrap();
        assert_eq!(opened[..], plain);
        // Elsewhere in the tree, of another commit or store, it is none.
        for (level, index, epoch, store) in [
            (level + 1, index, epoch, store),
            (level, index + 1, epoch, store),
            (level, index, epoch + 1, store),
            (level, index, epoch, [0; 16]),
        ] {
            let entry = Entry { epoch, ..entry };
            assert!(read(&disk, &sealer, &store, level, index, &entry).is_err());
        }
    }
}

#[test]
fn records_are_written_and_read_as_in_the_vectors() {
    [vectors(), with_journal()].iter().for_each(records_are_those_of);
}

fn records_are_those_of(vectors: &Value) {
    let keys = keys(vectors);
    assert_eq!(keys.id(), array(&vectors["key_id"]));
    let sealer = Sealer::new(keys.pages());
    for vector in vectors["records"].as_array().unwrap() {
        let top = tree::decode(&array(&vector["top"]));
        let (epoch, blocks) = (number(&vector["epoch"]), number(&vector["blocks"]));
        let (store, length) = (array(&vectors["store"]), number(&vector["length"]));
        let journal = vector.get("journal").map(bytes).unwrap_or_default();
        let (key_id, top_entry) = (keys.id(), top.as_ref());
        let fields = Fields { key_id, store, epoch, blocks, length, top: top_entry, journal: &journal };
        let block = fields.seal(&sealer, array(&vector["nonce"])).unwrap();
        let record = bytes(&vector["record"]);
        assert_eq!(record.len(), RECORD + journal.len());
        assert_eq!(block[..record.len()], record);
        assert!(block[record.len()..].iter().all(|byte| *byte == 0));
        let found = root::open(&record, &sealer, keys.id()).unwrap();
        assert_eq!(root::open(&block[..], &sealer, keys.id()).unwrap().root, found.root);
        assert_eq!(root::digest(&block, journal.len()), found.root.digest);
        assert_eq!((found.blocks, found.length, found.top), (blocks, length, top));
        assert_eq!(found.journal, journal);
        assert_eq!((found.root.epoch, found.root.store), (epoch, store));
        assert_eq!(Digest::from(found.root.digest).hex(), vector["digest"].as_str().unwrap());
    }
}

#[test]
fn what_the_vectors_refuse_is_refused() {
    [vectors(), with_journal()].iter().for_each(refused_are_those_of);
}

fn refused_are_those_of(vectors: &Value) {
    let keys = keys(vectors);
    let refused = vectors["refused"].as_array().unwrap();
    assert!(refused.len() > 10);
    for vector in refused {
        let record = bytes(&vector["record"]);
        assert!(root::open(&record, &Sealer::new(keys.pages()), keys.id()).is_err(), "{}", vector["why"]);
    }
}

#[test]
fn changes_are_written_and_read_as_in_the_vectors() {
    for vector in with_journal()["records"].as_array().unwrap() {
        let changes = vector["changes"].as_array().unwrap().iter();
        let operations: Vec<_> = changes
            .map(|change| Operation {
                request: array(&change["request"]),
                reference: change["reference"].as_str().unwrap().parse().unwrap(),
                sealed: change.get("sealed").map(|sealed| bytes(sealed).into()),
            })
            .collect();
        let journal = bytes(&vector["journal"]);
        let encoded: Vec<_> = operations.iter().flat_map(|operation| operation.encode().unwrap()).collect();
        assert_eq!(encoded, journal);
        assert_eq!(journal::decode(&journal), Some(operations));
    }
}
