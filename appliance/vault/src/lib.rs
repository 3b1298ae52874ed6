//! cofferdam-vault
