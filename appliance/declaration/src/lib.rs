//! cofferdam-declaration
