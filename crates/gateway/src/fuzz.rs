//! What the fuzz targets call: every parser that reads a sandbox's or an upstream's bytes, with what must hold for any
//! input. The first byte says in pieces of which size the rest comes, where nothing may depend on that.

pub use crate::control::fuzz::journal;
pub use crate::egress::fuzz::request_head;
pub use crate::git::fuzz::{packets, push_contents, push_report};
pub use crate::model::fuzz::{model_reply, model_request};

/// The size of pieces, and what comes in them.
pub(crate) fn cut(data: &[u8]) -> Option<(usize, &[u8])> {
    let (size, bytes) = data.split_first()?;
    Some((usize::from(*size) + 1, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds of `make fuzz`, so that the targets stay true without it.
    #[test]
    fn every_target_takes_its_seeds() {
        type Target = fn(&[u8]);
        let targets: [(&str, Target); 7] = [
            ("packets", packets),
            ("push_contents", push_contents),
            ("push_report", push_report),
            ("model_reply", model_reply),
            ("model_request", model_request),
            ("journal", journal),
            ("request_head", request_head),
        ];
        for (name, target) in targets {
            let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/");
            let files = std::fs::read_dir(format!("{seeds}{name}")).unwrap();
            let taken = files.map(|file| target(&std::fs::read(file.unwrap().path()).unwrap())).count();
            assert!(taken > 0, "{name} has no seed");
            target(&[]);
        }
    }
}
