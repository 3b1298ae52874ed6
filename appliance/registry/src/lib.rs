//! OCI registries: what an image's name leads to, and the bytes behind a digest.
//!
//! Responsible for the documents of an image ([`image`]) and for fetching them and its layers ([`Registry`]). It unpacks nothing, keeps
//! nothing and knows no service.

mod client;
pub mod image;

pub use client::{Access, Credentials, Patience, Registry, RegistryError, base};
