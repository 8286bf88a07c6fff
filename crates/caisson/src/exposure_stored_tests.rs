use caisson_domain::credential::{ModelReach, TokenFormat};

use super::*;

#[test]
fn stored_credentials_that_are_sent_without_encryption_are_told() {
    let mcp =
        |url: &str| CredentialSettings::McpHeader { url: url.parse().unwrap(), header: "x-key".to_owned() };
    let git = |url: &str| CredentialSettings::GitToken {
        url_prefix: url.parse().unwrap(),
        username: "x".to_owned(),
    };
    for settings in [mcp("https://m.example/mcp"), mcp("http://127.0.0.1:9/mcp"), git("https://g.example/")] {
        assert_eq!(open_credential("notes", &settings), None, "{settings:?}");
    }
    let registry = |host: &str| CredentialSettings::RegistryToken { host: host.to_owned(), username: None };
    for host in ["https://r.example", "https://r.example:80", "127.0.0.1:9", "localhost", "[::1]:9"] {
        assert_eq!(open_credential("registry", &registry(host)), None, "{host}");
    }
    for host in ["r.example", "r.example:8080", "10.0.0.1", "[2001:db8::1]:9"] {
        let told = open_credential("registry", &registry(host)).unwrap();
        assert!(told.contains(&format!("host=https://{host}, and an https:// rule")), "{told}");
    }
    for (settings, kind) in
        [(mcp("http://m.example/mcp"), "mcp_header"), (git("http://g.example/"), "git_token")]
    {
        let told = open_credential("no\u{7}tes", &settings).unwrap();
        assert!(told.contains(kind) && told.contains(".example/") && told.contains("https"), "{told}");
        assert!(!told.contains('\u{7}'), "{told}");
    }
}

#[test]
fn every_url_that_a_stored_credentials_secret_is_sent_to_is_looked_at() {
    let app = |url_prefix: &str, api_base_url: &str| CredentialSettings::GitGithubApp {
        url_prefix: url_prefix.parse().unwrap(),
        api_base_url: api_base_url.parse().unwrap(),
        app_id: "1".to_owned(),
        installation_id: 1,
    };
    let login = |token_url: &str| CredentialSettings::ModelOauth {
        reach: ModelReach::default(),
        token_url: token_url.parse().unwrap(),
        client_id: None,
        token_format: TokenFormat::Form,
        anthropic_beta: None,
    };
    for sealed in [app("https://g.example/", "https://api.example/"), login("https://id.example/token")] {
        assert_eq!(open_credential("token", &sealed), None, "{sealed:?}");
    }
    for (settings, urls) in [
        (app("https://g.example/", "http://api.example/v3"), "to http://api.example/v3 over"),
        (
            app("http://g.example/", "http://api.example/"),
            "to http://g.example/ and to http://api.example/ over",
        ),
        (login("http://id.example/token"), "to http://id.example/token over"),
    ] {
        let told = open_credential("token", &settings).unwrap();
        assert!(told.contains(urls), "{told}");
    }
}
