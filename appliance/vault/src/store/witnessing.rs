//! Who is told of a state's commits after it has opened: its key servers, with what authenticates that to each.
//!
//! It stands in the store because a report bears a mark under a server's key, which the vault has only of servers that answered before the
//! state opened. What is kept gives no way back to that key ([`ReportKey`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use cofferdam_attest::keyserve::ReportKey;
use redb::{ReadTransaction, ReadableTable as _, TableDefinition, TableError, WriteTransaction};

use super::{StoreError, database_error};

/// Identity of the state, and whether this boot has made it.
const STATE: TableDefinition<'static, (), ([u8; 16], bool)> = TableDefinition::new("witnessed-state");
/// The beginning of the SHA-256 of a server's key → its [`ReportKey`].
const KEYS: TableDefinition<'static, [u8; 8], [u8; 32]> = TableDefinition::new("report-keys");

/// What an opening says of it.
pub(crate) struct Witnessing {
    pub(crate) state: [u8; 16],
    pub(crate) fresh: bool,
    /// The declared servers; without a key where the one that is known stays.
    pub(crate) servers: Vec<([u8; 8], Option<[u8; 32]>)>,
}

/// What is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Witnesses {
    pub(crate) state: [u8; 16],
    pub(crate) fresh: bool,
    pub(crate) keys: BTreeMap<[u8; 8], Arc<ReportKey>>,
}

impl Witnessing {
    pub(super) fn after(&self, before: Option<&Witnesses>) -> Witnesses {
        let key = |(server, key): &([u8; 8], Option<[u8; 32]>)| {
            let known = || before.and_then(|before| before.keys.get(server).cloned());
            Some((*server, key.map(|key| Arc::new(ReportKey::from_bytes(key))).or_else(known)?))
        };
        Witnesses {
            state: self.state,
            fresh: self.fresh,
            keys: self.servers.iter().filter_map(key).collect(),
        }
    }
}

pub(super) fn set(transaction: &WriteTransaction, witnesses: Option<&Witnesses>) -> Result<(), StoreError> {
    let mut state = transaction.open_table(STATE).map_err(database_error)?;
    let mut keys = transaction.open_table(KEYS).map_err(database_error)?;
    state.retain(|(), _| false).map_err(database_error)?;
    keys.retain(|_, _| false).map_err(database_error)?;
    if let Some(witnesses) = witnesses {
        state.insert((), (witnesses.state, witnesses.fresh)).map_err(database_error)?;
        for (server, key) in &witnesses.keys {
            keys.insert(*server, *key.expose()).map_err(database_error)?;
        }
    }
    Ok(())
}

pub(super) fn load(transaction: &ReadTransaction) -> Result<Option<Witnesses>, StoreError> {
    let (state, keys) = match (transaction.open_table(STATE), transaction.open_table(KEYS)) {
        (Ok(state), Ok(keys)) => (state, keys),
        (Err(TableError::TableDoesNotExist(_)), _) | (_, Err(TableError::TableDoesNotExist(_))) => {
            return Ok(None);
        }
        (Err(error), _) | (_, Err(error)) => return Err(database_error(error)),
    };
    let Some((state, fresh)) = state.get(()).map_err(database_error)?.map(|row| row.value()) else {
        return Ok(None);
    };
    let mut known = BTreeMap::new();
    for row in keys.iter().map_err(database_error)? {
        let (server, key) = row.map_err(database_error)?;
        known.insert(server.value(), Arc::new(ReportKey::from_bytes(key.value())));
    }
    Ok(Some(Witnesses { state, fresh, keys: known }))
}
