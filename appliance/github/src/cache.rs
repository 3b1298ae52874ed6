//! What need not be asked again.

/// A memory for GitHub's answers, kept by the caller.
///
/// What [`Cache::get`] returns is taken for GitHub's word, so an implementation that keeps entries where others can write
/// returns only what it can prove to have been put under that very key. Losing an entry costs a request and nothing else.
pub trait Cache: Send + Sync {
    /// What was put under `key`.
    fn get(&self, key: &str) -> Option<Vec<u8>>;

    /// Remembers `value` under `key`, instead of what was there.
    fn put(&self, key: &str, value: &[u8]);
}
