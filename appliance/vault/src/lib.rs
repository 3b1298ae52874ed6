//! x
mod keys;
mod record;
mod reference;
mod secret;
mod store; pub use store::*; pub use keys::*; pub use record::*; pub use reference::*; pub use secret::*;
