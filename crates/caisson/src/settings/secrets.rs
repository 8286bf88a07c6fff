//! Secrets in files.

use std::path::Path;

use anyhow::Context;
use secrecy::SecretString;

/// Reads the secret from the file that the setting `key` names: its text without the final line end.
///
/// # Errors
/// The file cannot be read, is empty or has more than one line.
pub(crate) fn read_secret(key: &str, file: &Path) -> anyhow::Result<SecretString> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("{key}: the secret file \"{}\" cannot be read", file.display()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    anyhow::ensure!(!text.is_empty(), "{key}: the secret file \"{}\" is empty", file.display());
    anyhow::ensure!(
        !text.contains('\n'),
        "{key}: the secret file \"{}\" must hold exactly one line",
        file.display()
    );
    Ok(text.to_owned().into())
}
