//! cofferdam-redact
