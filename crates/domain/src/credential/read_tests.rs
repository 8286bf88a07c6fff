use super::*;

/// Fields by name.
type Given<'a> = &'a [(&'static str, &'a str)];

fn fields(settings: &[(&'static str, &str)], secret: &[(&'static str, &str)]) -> CredentialFields {
    CredentialFields {
        settings: settings.iter().map(|(name, text)| (*name, (*text).to_owned())).collect(),
        secret: secret.iter().map(|(name, text)| (*name, (*text).to_owned().into())).collect(),
    }
}

fn faults(kind: CredentialKind, settings: &[(&'static str, &str)]) -> Vec<(&'static str, &'static str)> {
    let read = fields(settings, &[]).settings(kind);
    read.unwrap_err().into_iter().map(|fault| (fault.field, fault.code)).collect()
}

const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

#[test]
fn each_kind_reads_its_own_settings_and_is_stored_and_read_back() {
    let cases: [(CredentialKind, Given<'_>, Option<&str>); 9] = [
        (CredentialKind::ModelApiKey, &[], None),
        (
            CredentialKind::ModelApiKey,
            &[
                ("base_url", "https://model.example.com/v9"),
                ("outbound_proxy", "http://proxy.example.com:3128"),
                ("ca_pem", PEM),
                ("send_as", "bearer"),
            ],
            Some("https://model.example.com/v9"),
        ),
        (
            CredentialKind::ModelOauth,
            &[("token_url", "https://id.example.com/token"), ("client_id", "c"), ("token_format", "json")],
            None,
        ),
        (
            CredentialKind::GitToken,
            &[("url_prefix", "https://git.example.com/team"), ("username", "robot")],
            Some("https://git.example.com/team"),
        ),
        (
            CredentialKind::GitGithubApp,
            &[("app_id", "12"), ("installation_id", "34")],
            Some("https://github.com/"),
        ),
        (
            CredentialKind::McpHeader,
            &[("url", "https://mcp.example.com/x"), ("header", "X-Token")],
            Some("https://mcp.example.com/x"),
        ),
        (
            CredentialKind::RegistryToken,
            &[("host", "packages.example.com:8443")],
            Some("packages.example.com:8443"),
        ),
        (
            CredentialKind::RegistryToken,
            &[("host", "https://Packages.example.com:443")],
            Some("https://packages.example.com"),
        ),
        (
            CredentialKind::RegistryToken,
            &[("host", "https://packages.example.com:8443"), ("username", "team")],
            Some("https://packages.example.com:8443"),
        ),
    ];
    for (kind, given, scope) in cases {
        let settings = fields(given, &[]).settings(kind).unwrap();
        assert_eq!((settings.kind(), settings.scope()), (kind, scope));
        let stored = serde_json::to_string(&settings).unwrap();
        assert!(stored.contains(kind.as_str()), "{stored}");
        assert_eq!(serde_json::from_str::<CredentialSettings>(&stored).unwrap(), settings);
    }
}

#[test]
fn a_registrys_host_has_one_spelling_and_no_port_is_lost() {
    let read = |host: &str| {
        let settings = fields(&[("host", host)], &[]).settings(CredentialKind::RegistryToken).unwrap();
        settings.scope().unwrap().to_owned()
    };
    for (given, kept) in [
        ("Packages.example.com.", "packages.example.com"),
        ("h:80", "h"),
        ("h:080", "h"),
        ("h:8443", "h:8443"),
        ("h:08443", "h:8443"),
        ("[2001:DB8::1]", "[2001:db8::1]"),
        ("[2001:db8::1]:8080", "[2001:db8::1]:8080"),
        ("192.0.2.1:8080", "192.0.2.1:8080"),
        ("https://h:80", "https://h:80"),
        ("https://h:0443", "https://h"),
        ("https://[2001:db8::1]:443/", "https://[2001:db8::1]"),
        ("https://Packages.example.com/", "https://packages.example.com"),
        ("HTTPS://Packages.example.com:8443/", "https://packages.example.com:8443"),
    ] {
        assert_eq!(read(given), kept, "{given}");
    }
}

#[test]
fn settings_that_are_missing_wrong_or_of_another_kind_are_told_together() {
    assert_eq!(faults(CredentialKind::GitToken, &[]), [("url_prefix", "missing_field")]);
    assert_eq!(
        faults(CredentialKind::GitGithubApp, &[("installation_id", "x"), ("host", "h")]),
        [("app_id", "missing_field"), ("installation_id", "invalid_value"), ("host", "unknown_field")]
    );
    let long = "x".repeat(CREDENTIAL_TEXT_BYTES + 1);
    for (kind, field, bad) in [
        (CredentialKind::ModelApiKey, "base_url", "ftp://h/"),
        (CredentialKind::ModelApiKey, "base_url", "https://u:p@h/"),
        (CredentialKind::ModelApiKey, "outbound_proxy", "http://u:p@h/"),
        (CredentialKind::ModelApiKey, "ca_pem", "nonsense"),
        (CredentialKind::ModelApiKey, "send_as", "cookie"),
        (CredentialKind::ModelOauth, "token_format", "xml"),
        (CredentialKind::ModelOauth, "client_id", "a\nb"),
        (CredentialKind::ModelOauth, "anthropic_beta", &long),
        (CredentialKind::GitToken, "url_prefix", "https://h/team/..;/x"),
        (CredentialKind::GitToken, "url_prefix", "/srv/git"),
        (CredentialKind::GitToken, "username", "a:b"),
        (CredentialKind::McpHeader, "header", "x y"),
        (CredentialKind::McpHeader, "header", "Host"),
        (CredentialKind::McpHeader, "url", ""),
        (CredentialKind::RegistryToken, "host", "h/path"),
        (CredentialKind::RegistryToken, "host", "u@h"),
        (CredentialKind::RegistryToken, "host", "h:443"),
        (CredentialKind::RegistryToken, "host", "h:0443"),
        (CredentialKind::RegistryToken, "host", "h:00443"),
        (CredentialKind::RegistryToken, "host", "h.:443"),
        (CredentialKind::RegistryToken, "host", "[2001:db8::1]:0443"),
        (CredentialKind::RegistryToken, "host", "h:"),
        (CredentialKind::RegistryToken, "host", "h:0"),
        (CredentialKind::RegistryToken, "host", "h:+443"),
        (CredentialKind::RegistryToken, "host", "h:65536"),
        (CredentialKind::RegistryToken, "host", "h:443:443"),
        (CredentialKind::RegistryToken, "host", "h:443:80"),
        (CredentialKind::RegistryToken, "host", "h/"),
        (CredentialKind::RegistryToken, "host", "h..example"),
        (CredentialKind::RegistryToken, "host", "127.1"),
        (CredentialKind::RegistryToken, "host", "https://h//"),
        (CredentialKind::RegistryToken, "host", "https:///"),
        (CredentialKind::RegistryToken, "host", "https://h\\x"),
        (CredentialKind::RegistryToken, "host", "http://h"),
        (CredentialKind::RegistryToken, "host", "https://h/path"),
        (CredentialKind::RegistryToken, "host", "https://https://h"),
        (CredentialKind::RegistryToken, "host", "https://u@h"),
        (CredentialKind::RegistryToken, "host", "https://h?q"),
        (CredentialKind::RegistryToken, "host", "https://"),
    ] {
        let found = faults(kind, &[(field, bad)]);
        assert!(found.contains(&(field, "invalid_value")), "{field} {bad}: {found:?}");
    }
    let pem = format!("{PEM}{}", "x".repeat(CREDENTIAL_CA_BYTES + 1 - PEM.len()));
    assert_eq!(faults(CredentialKind::ModelApiKey, &[("ca_pem", &pem)]), [("ca_pem", "invalid_value")]);
    assert!(
        fields(&[("ca_pem", &pem[..CREDENTIAL_CA_BYTES])], &[]).settings(CredentialKind::ModelApiKey).is_ok()
    );
}

#[test]
fn secrets_are_bounded_and_a_fault_never_repeats_one() {
    let read = |kind, secret: &[(&'static str, &str)]| fields(&[], secret).secret(kind);
    let longest = "x".repeat(CREDENTIAL_SECRET_BYTES);
    assert!(read(CredentialKind::GitToken, &[("value", &longest)]).is_ok());
    assert!(read(CredentialKind::GitGithubApp, &[("private_key", "-----BEGIN\nX\n")]).is_ok());
    assert!(
        read(
            CredentialKind::ModelOauth,
            &[("access_token", "8 bytes."), ("refresh_token", "8 bytes."), ("expires_at_ms", "9")]
        )
        .is_ok()
    );
    let long = format!("{longest}x");
    let cases: [(CredentialKind, Given<'_>, &str, &str); 10] = [
        (CredentialKind::GitToken, &[], "value", "missing_field"),
        (CredentialKind::GitToken, &[("value", &long)], "value", "invalid_value"),
        (CredentialKind::GitToken, &[("value", "")], "value", "invalid_value"),
        (CredentialKind::GitToken, &[("value", "7 bytes")], "value", "invalid_value"),
        (CredentialKind::GitToken, &[("value", "canary\n")], "value", "invalid_value"),
        (
            CredentialKind::GitToken,
            &[("value", "8 bytes."), ("proxy_login", "canary--")],
            "proxy_login",
            "unknown_field",
        ),
        (
            CredentialKind::ModelApiKey,
            &[("value", "8 bytes."), ("proxy_login", "canary--")],
            "proxy_login",
            "invalid_value",
        ),
        (
            CredentialKind::ModelOauth,
            &[("access_token", "8 bytes."), ("refresh_token", "8 bytes."), ("expires_at_ms", "canary")],
            "expires_at_ms",
            "invalid_value",
        ),
        (CredentialKind::ModelOauth, &[("access_token", "canary--")], "refresh_token", "missing_field"),
        (CredentialKind::GitGithubApp, &[("private_key", &long)], "private_key", "invalid_value"),
    ];
    for (kind, given, field, code) in cases {
        let found = read(kind, given).unwrap_err();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].field, found[0].code), (field, code), "{found:?}");
        assert!(!format!("{found:?}").contains("canary"), "{found:?}");
    }
}
