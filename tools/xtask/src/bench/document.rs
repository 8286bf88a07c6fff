//! The generated part of `docs/benchmarks.md`; pure.

use anyhow::{Context, ensure};

/// What stands before the generated part.
const BEGIN: &str = "<!-- bench: begin -->";
/// What stands behind it.
const END: &str = "<!-- bench: end -->";
/// The same for the part of the model door.
const MODEL_MARKS: [&str; 2] = ["<!-- model-bench: begin -->", "<!-- model-bench: end -->"];

/// Puts new text between the two marks of a document.
///
/// # Errors
/// The document does not have each mark once, in this order.
pub(crate) fn replace(document: &str, generated: &str) -> anyhow::Result<String> {
    replace_between(document, [BEGIN, END], generated)
}

/// Puts new text between the two marks of the model door's part.
///
/// # Errors
/// As [`replace`].
pub(crate) fn replace_model(document: &str, generated: &str) -> anyhow::Result<String> {
    replace_between(document, MODEL_MARKS, generated)
}

fn replace_between(document: &str, [begin, end]: [&str; 2], generated: &str) -> anyhow::Result<String> {
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
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let document = format!("# Title\n{BEGIN}\nold\n{END}\nend\n");
        let new = replace(&document, "new\n\n").unwrap();
        assert_eq!(new, format!("# Title\n{BEGIN}\nnew\n{END}\nend\n"));
        assert_eq!(replace(&new, "new").unwrap(), new);
    }

    #[test]
    fn a_document_without_its_marks_is_left_alone() {
        for bad in ["", BEGIN, END, &format!("{END}{BEGIN}"), &format!("{BEGIN}{BEGIN}{END}")] {
            assert!(replace(bad, "new").is_err(), "{bad}");
        }
    }

    #[test]
    fn the_projects_document_has_its_marks() {
        let document = include_str!("../../../../docs/benchmarks.md");
        let new = replace(document, "new").unwrap();
        let again = replace_model(&new, "also new").unwrap();
        assert!(again.contains("\nnew\n") && again.contains("\nalso new\n"));
    }
}
