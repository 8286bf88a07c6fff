//! What only the Docker engine has.

pub(crate) mod bench;
mod daemon;
mod images;
mod sealed;
