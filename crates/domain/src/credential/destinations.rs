//! Where a credential's secrets are sent.

use url::Url;

use super::{CredentialSettings, OVER_TLS};

impl CredentialSettings {
    /// Every URL that a secret of it is sent to or signs for, in the order of its fields; for a repository the prefix, for a
    /// registry its root. The model API of the server's configuration is none of them.
    #[must_use]
    pub fn destinations(&self) -> Vec<Url> {
        let base_url = self.reach().and_then(|reach| reach.base_url.clone());
        let further = match self {
            Self::ModelApiKey { .. } => Vec::new(),
            Self::ModelOauth { token_url, .. } => vec![token_url.clone()],
            Self::GitToken { url_prefix, .. } => vec![url_prefix.clone()],
            Self::GitGithubApp { url_prefix, api_base_url, .. } => {
                vec![url_prefix.clone(), api_base_url.clone()]
            }
            Self::McpHeader { url, .. } => vec![url.clone()],
            Self::RegistryToken { host, .. } => {
                let plain = (!host.starts_with(OVER_TLS)).then(|| format!("http://{host}/"));
                Url::parse(plain.as_deref().unwrap_or(host)).into_iter().collect()
            }
        };
        base_url.into_iter().chain(further).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::{ModelReach, SendAs, TokenFormat};

    #[test]
    fn every_url_that_a_secret_is_sent_to_is_named() {
        let url = |text: &str| -> Url { text.parse().unwrap() };
        let reach = ModelReach { base_url: Some(url("https://m.example/v1")), ..ModelReach::default() };
        let oauth = |reach: &ModelReach| CredentialSettings::ModelOauth {
            reach: reach.clone(),
            token_url: url("https://id.example/token"),
            client_id: None,
            token_format: TokenFormat::Form,
            anthropic_beta: None,
        };
        let app = CredentialSettings::GitGithubApp {
            url_prefix: url("https://g.example/team"),
            api_base_url: url("http://api.example/"),
            app_id: "1".to_owned(),
            installation_id: 1,
        };
        let registry =
            |host: &str| CredentialSettings::RegistryToken { host: host.to_owned(), username: None };
        for (settings, expected) in [
            (
                CredentialSettings::ModelApiKey { reach: reach.clone(), send_as: SendAs::Bearer },
                vec!["https://m.example/v1"],
            ),
            (oauth(&reach), vec!["https://m.example/v1", "https://id.example/token"]),
            (oauth(&ModelReach::default()), vec!["https://id.example/token"]),
            (
                CredentialSettings::GitToken {
                    url_prefix: url("http://g.example/"),
                    username: "u".to_owned(),
                },
                vec!["http://g.example/"],
            ),
            (app, vec!["https://g.example/team", "http://api.example/"]),
            (
                CredentialSettings::McpHeader { url: url("https://mcp.example/"), header: "a".to_owned() },
                vec!["https://mcp.example/"],
            ),
            (registry("r.example:8080"), vec!["http://r.example:8080/"]),
            (registry("https://r.example"), vec!["https://r.example/"]),
        ] {
            let found: Vec<_> = settings.destinations().iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{settings:?}");
        }
    }
}
