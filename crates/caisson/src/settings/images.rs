//! The images that repositories may choose.

use caisson_domain::image::{IMAGE_RULES, ImageRule};

use super::Settings;

/// What of the list does not fit.
pub(super) fn faults(rules: &[String]) -> Vec<String> {
    let mut faults: Vec<String> = rules
        .iter()
        .filter_map(|rule| rule.parse::<ImageRule>().err())
        .map(|error| format!("repository_images: {error}"))
        .collect();
    if rules.len() > IMAGE_RULES {
        faults.push(format!(
            "repository_images has {} entries; give at most {IMAGE_RULES}, such as registry.example/team/*",
            rules.len()
        ));
    }
    faults
}

impl Settings {
    /// The images that repositories may choose. What cannot be read, the faults have told.
    pub(crate) fn repository_images(&self) -> Vec<ImageRule> {
        self.repository_images.iter().filter_map(|rule| rule.parse().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_cannot_be_used_and_too_many_are_told() {
        let texts = |count: usize| (0..count).map(|number| format!("image:{number}")).collect::<Vec<_>>();
        assert!(faults(&texts(IMAGE_RULES)).is_empty());
        assert_eq!(faults(&texts(IMAGE_RULES + 1)).len(), 1);
        let bad = faults(&["debian*".to_owned(), "team/*".to_owned(), "a b".to_owned()]);
        assert_eq!(bad.len(), 2, "{bad:?}");
        assert!(bad[0].starts_with("repository_images: \"debian*\""), "{}", bad[0]);
    }
}
