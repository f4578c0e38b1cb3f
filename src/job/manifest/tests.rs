//! Tests of the rendered Jobs.
