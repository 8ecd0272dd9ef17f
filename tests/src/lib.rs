//! What the tests of the whole runtime share.
