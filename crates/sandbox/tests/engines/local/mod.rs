//! What only the local engine has.

pub(crate) mod bench;
mod deaths;
mod inside;
mod options;
mod ordinary;
mod outside;
