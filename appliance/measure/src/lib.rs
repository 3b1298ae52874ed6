//! cofferdam-measure
