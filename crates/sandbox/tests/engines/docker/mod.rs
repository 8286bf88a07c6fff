//! What only the Docker engine has.

pub(crate) mod bench;
mod calls;
mod daemon;
mod images;
mod sealed;
