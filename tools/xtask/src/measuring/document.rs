//! The generated parts of documents; pure.

use anyhow::{Context, ensure};

/// A generated part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// That of `bench`.
    Bench,
    /// That of `model-bench`.
    ModelBench,
    /// That of `load`.
    Load,
    /// The plans that `load` looks at.
    Plans,
}

impl Part {
    /// The document that it is in.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Bench | Self::ModelBench | Self::Load => "docs/benchmarks.md",
            Self::Plans => "docs/plans.md",
        }
    }

    /// What stands before it, and behind it.
    fn marks(self) -> [String; 2] {
        let name = match self {
            Self::Bench => "bench",
            Self::ModelBench => "model-bench",
            Self::Load => "load",
            Self::Plans => "plans",
        };
        ["begin", "end"].map(|place| format!("<!-- {name}: {place} -->"))
    }
}

/// Puts new text between the two marks of a part.
///
/// # Errors
/// The document does not have each mark once, in this order.
pub(crate) fn replace(document: &str, part: Part, generated: &str) -> anyhow::Result<String> {
    let marks = part.marks();
    let [begin, end] = marks.each_ref().map(String::as_str);
    for mark in [begin, end] {
        ensure!(document.matches(mark).count() == 1, "the document must have the mark {mark} once");
    }
    let (before, rest) = document.split_once(begin).context("a mark that was there is gone")?;
    let (_, after) =
        rest.split_once(end).context("the mark of the end stands before the mark of the beginning")?;
    Ok(format!("{before}{begin}\n{}\n{end}{after}", generated.trim_end()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::measuring::WORKSPACE;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let document = "# Title\n<!-- load: begin -->\nold\n<!-- load: end -->\nend\n";
        let new = replace(document, Part::Load, "new\n\n").unwrap();
        assert_eq!(new, "# Title\n<!-- load: begin -->\nnew\n<!-- load: end -->\nend\n");
        assert_eq!(replace(&new, Part::Load, "new").unwrap(), new);
    }

    #[test]
    fn a_document_without_its_marks_is_left_alone() {
        let [begin, end] = Part::Bench.marks();
        for bad in [
            String::new(),
            begin.clone(),
            end.clone(),
            format!("{end}{begin}"),
            format!("{begin}{begin}{end}"),
        ] {
            assert!(replace(&bad, Part::Bench, "new").is_err(), "{bad}");
        }
    }

    #[test]
    fn the_projects_documents_have_their_marks() {
        for part in [Part::Bench, Part::ModelBench, Part::Load, Part::Plans] {
            let path = Path::new(WORKSPACE).join(part.file());
            let text = format!("new of {part:?}");
            let document = replace(&std::fs::read_to_string(path).unwrap(), part, &text).unwrap();
            assert!(document.contains(&format!("\n{text}\n")));
        }
    }
}
