//! cofferdam-attest
