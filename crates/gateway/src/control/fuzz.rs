//! What must hold for any bytes of the shim's.

use caisson_domain::redact::Redactor;

use super::record;
use crate::bounds::JOURNAL_BATCH_LINES;

/// A batch of the shim's journal, which is within the agent's reach.
///
/// # Panics
/// A find.
pub fn journal(data: &[u8]) {
    let batch = record::read(data, &Redactor::default());
    assert!(batch.bytes <= data.len() as u64);
    let lines = data.split_inclusive(|byte| *byte == b'\n').count();
    assert!(batch.bytes == data.len() as u64 || lines > JOURNAL_BATCH_LINES);
    let _ = (batch.is_understood(), batch.has_outcome());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_an_outcome() {
        assert!(
            record::read(include_bytes!("../../../../fuzz/seeds/journal/outcome"), &Redactor::default())
                .has_outcome()
        );
    }
}
