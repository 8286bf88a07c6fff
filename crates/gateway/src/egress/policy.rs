//! Whether a wish is among the rules: the operator's are the ceiling, a workflow chooses below it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use caisson_domain::checks::{Check, stands};
use caisson_domain::egress::{Choice, HTTPS_PORT, Host, Preset, Rule, Scope, Target, Via, Wanted, is_plain};
use secrecy::ExposeSecret;

use super::config::{EgressCredential, EgressUpstreams};
use super::fault::Fault;
use crate::config::{GatewayError, check_url, secret_header};
use crate::credentials::RegistryLogin;

/// Why a wish passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ground {
    /// A rule of the operator's has it.
    Rule,
    /// No rule has it; it is let through to public addresses, and without a credential, so that a list can be made of it.
    Learning,
}

/// The operator's rules, ready to be asked.
pub(super) struct Policy {
    rules: Vec<Rule>,
    presets: Vec<(Preset, Vec<Rule>)>,
    credentials: Vec<(EgressCredential, RegistryLogin)>,
    learn: bool,
}

impl Policy {
    pub(super) fn new(upstreams: &EgressUpstreams) -> Result<Self, GatewayError> {
        const WHICH: &str = "an egress credential's URL prefix";
        let ready = |credential: &EgressCredential| {
            let url = &credential.url_prefix;
            check_url(WHICH, url)?;
            if url.host_str().is_none_or(|host| Host::parse(host).is_err()) {
                let reason =
                    "its host is none that a rule could name; look for an empty part or a strange character";
                return Err(GatewayError::Url { which: WHICH, reason });
            }
            let token = credential.token.expose_secret();
            let text = match &credential.username {
                Some(username) => format!("Basic {}", STANDARD.encode(format!("{username}:{token}"))),
                None => format!("Bearer {token}"),
            };
            let authorization = secret_header("an egress credential", &text)?;
            let name = credential.url_prefix.to_string();
            Ok((credential.clone(), RegistryLogin { authorization, name }))
        };
        Ok(Self {
            rules: upstreams.rules.clone(),
            presets: upstreams.presets.clone(),
            credentials: upstreams.credentials.iter().map(ready).collect::<Result<_, GatewayError>>()?,
            learn: upstreams.learn,
        })
    }

    /// How the wish goes out: a plain request over TLS where an HTTPS rule is for it, and else as it is. TLS comes first, unless
    /// the workflow chose the plain way alone.
    pub(super) fn way(&self, chosen: Option<&[String]>, wanted: Wanted) -> Wanted {
        let mut secured = self.rules().filter_map(|rule| rule.secured(&wanted)).peekable();
        let Some(first) = secured.peek().cloned() else { return wanted };
        let passing = secured.find(|wanted| self.is_chosen(chosen, wanted));
        let plain = || (self.is_allowed(&wanted) && self.is_chosen(chosen, &wanted)).then(|| wanted.clone());
        // What is told of a refusal is the rule that the workflow lacks.
        passing.or_else(plain).unwrap_or(first)
    }

    /// Refuses what the operator's rules do not have, unless the operator has it learned, and what the workflow did not choose.
    /// An address is never learned: it is no host that a list should have.
    pub(super) fn judge(&self, chosen: Option<&[String]>, wanted: &Wanted) -> Result<Ground, Fault> {
        if !stands(Check::EgressRules) {
            return Ok(Ground::Rule);
        }
        let learns = self.learn && matches!(wanted.target.host, Host::Name(_));
        let ground = if self.is_allowed(wanted) {
            Ground::Rule
        } else if let Some(url) = self.plain_instead(chosen, wanted) {
            return Err(Fault::NoTunnel { rule: Rule::exactly(wanted).to_string(), url });
        } else if learns {
            Ground::Learning
        } else {
            return Err(Fault::NotAllowed { rule: Rule::exactly(wanted).to_string() });
        };
        if !self.is_chosen(chosen, wanted) {
            return Err(Fault::NotInWorkflow { rule: Rule::exactly(wanted).to_string() });
        }
        Ok(ground)
    }

    /// All rules of the operator.
    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().chain(self.presets.iter().flat_map(|(_, rules)| rules))
    }

    fn is_allowed(&self, wanted: &Wanted) -> bool {
        self.rules().any(|rule| rule.allows(wanted))
    }

    /// What a tool may ask for in plain, where it wanted a tunnel to a place that an HTTPS rule is for, which the workflow has.
    fn plain_instead(&self, chosen: Option<&[String]>, wanted: &Wanted) -> Option<String> {
        if wanted.via != Via::Tunnel {
            return None;
        }
        let Target { host, port } = &wanted.target;
        let port = if *port == HTTPS_PORT { String::new() } else { format!(":{port}") };
        self.rules().find_map(|rule| {
            let Scope::Https { methods, path } = &rule.scope else { return None };
            let (method, path) = (methods.first().cloned().unwrap_or_default(), path.clone());
            let url = format!("http://{host}{port}{path}");
            let instead = Wanted { target: wanted.target.clone(), via: Via::Https { method, path } };
            (rule.allows(&instead) && self.is_chosen(chosen, &instead)).then_some(url)
        })
    }

    /// Whether the workflow's list has it; without a list it has everything.
    fn is_chosen(&self, chosen: Option<&[String]>, wanted: &Wanted) -> bool {
        let any = |rules: &[Rule]| rules.iter().any(|rule| rule.allows(wanted));
        let allows = |entry: &String| match entry.parse() {
            Ok(Choice::Preset(chosen)) => {
                self.presets.iter().any(|(preset, rules)| *preset == chosen && any(rules))
            }
            Ok(Choice::Rule(rule)) => rule.allows(wanted),
            // Another version may have written it; what is not understood allows nothing.
            Err(_) => false,
        };
        chosen.is_none_or(|entries| entries.iter().any(allows))
    }

    /// The credential that a request is sent with: that of the longest prefix. One for TLS is not sent in plain, and one for
    /// plain HTTP not over TLS.
    pub(super) fn credential(&self, wanted: &Wanted) -> Option<&RegistryLogin> {
        let (scheme, path) = match &wanted.via {
            Via::Tunnel => return None,
            Via::Http { path, .. } => ("http", path),
            Via::Https { path, .. } => ("https", path),
        };
        let covers = |credential: &EgressCredential| {
            let url = &credential.url_prefix;
            let host = url.host_str().and_then(|host| Host::parse(host).ok());
            let prefix = url.path().trim_end_matches('/');
            let below =
                path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            url.scheme() == scheme
                && host.as_ref() == Some(&wanted.target.host)
                && url.port_or_known_default() == Some(wanted.target.port)
                && (prefix.is_empty() || (below && is_plain(path)))
        };
        let fitting = self.credentials.iter().filter(|(credential, _)| covers(credential));
        fitting.max_by_key(|(credential, _)| credential.url_prefix.path().len()).map(|(_, login)| login)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(target: &str) -> Wanted {
        Wanted { target: Target::parse(target, None).unwrap(), via: Via::Tunnel }
    }

    fn get(target: &str, path: &str) -> Wanted {
        let via = Via::Http { method: "GET".to_owned(), path: path.to_owned() };
        Wanted { target: Target::parse(target, Some(80)).unwrap(), via }
    }

    fn over_tls(target: &str, path: &str) -> Wanted {
        let via = Via::Https { method: "GET".to_owned(), path: path.to_owned() };
        Wanted { target: Target::parse(target, Some(443)).unwrap(), via }
    }

    fn policy(rules: &[&str], npm: &[&str]) -> Policy {
        let parse = |rules: &[&str]| rules.iter().map(|text| text.parse().unwrap()).collect::<Vec<Rule>>();
        let presets = vec![(Preset::Npm, parse(npm))];
        Policy::new(&EgressUpstreams { rules: parse(rules), presets, ..EgressUpstreams::default() }).unwrap()
    }

    fn chosen(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|entry| (*entry).to_owned()).collect()
    }

    #[test]
    fn without_rules_nothing_passes() {
        let fault = policy(&[], &[]).judge(None, &tunnel("example.com:443")).unwrap_err();
        assert_eq!(fault, Fault::NotAllowed { rule: "example.com:443".to_owned() });
    }

    #[test]
    fn a_workflow_narrows_and_never_widens() {
        let policy = policy(&["*.example.com"], &["npm.example:443"]);
        let (here, npm, other) =
            (tunnel("a.example.com:443"), tunnel("npm.example:443"), tunnel("evil.example:443"));
        for wanted in [&here, &npm] {
            assert_eq!(policy.judge(None, wanted), Ok(Ground::Rule));
            let none = policy.judge(Some(&[]), wanted);
            assert!(matches!(none, Err(Fault::NotInWorkflow { .. })));
        }
        assert_eq!(policy.judge(Some(&chosen(&["a.example.com"])), &here), Ok(Ground::Rule));
        assert_eq!(policy.judge(Some(&chosen(&["npm"])), &npm), Ok(Ground::Rule));
        for (entries, wanted) in
            [(&["npm"], &here), (&["pip"], &npm), (&["a.example.com"], &npm), (&["???"], &here)]
        {
            let fault = policy.judge(Some(&chosen(entries)), wanted).unwrap_err();
            assert!(matches!(fault, Fault::NotInWorkflow { .. }), "{entries:?}");
        }
        let wide = chosen(&["evil.example", "*.example"]);
        assert!(matches!(policy.judge(Some(&wide), &other), Err(Fault::NotAllowed { .. })));
    }

    #[test]
    fn what_is_learned_is_a_name_that_no_rule_has_and_the_workflow_may_reach() {
        let of = |learn: bool| {
            let rules = vec!["https://r.example/team/".parse().unwrap(), "a.example".parse().unwrap()];
            Policy::new(&EgressUpstreams { rules, learn, ..EgressUpstreams::default() }).unwrap()
        };
        let (open, closed) = (of(true), of(false));
        let ruled = tunnel("a.example:443");
        assert_eq!(open.judge(None, &ruled), Ok(Ground::Rule));
        let unruled =
            [tunnel("b.example:443"), tunnel("a.example:22"), get("b.example", "/x"), get("r.example", "/x")];
        for wanted in &unruled {
            assert_eq!(open.judge(None, wanted), Ok(Ground::Learning), "{wanted:?}");
            assert!(matches!(closed.judge(None, wanted), Err(Fault::NotAllowed { .. })), "{wanted:?}");
            for entries in [&[][..], &["a.example"], &["npm"]] {
                let fault = open.judge(Some(&chosen(entries)), wanted).unwrap_err();
                assert!(matches!(fault, Fault::NotInWorkflow { .. }), "{entries:?} {wanted:?}");
            }
            let has_it = chosen(&[&Rule::exactly(wanted).to_string()]);
            assert_eq!(open.judge(Some(&has_it), wanted), Ok(Ground::Learning), "{wanted:?}");
        }
        // A tunnel to where an HTTPS rule is for is no host that the list lacks.
        for (entries, is_told) in
            [(None, true), (Some(&["https://r.example/"][..]), true), (Some(&["npm"]), false)]
        {
            let fault = open.judge(entries.map(chosen).as_deref(), &tunnel("r.example:443")).unwrap_err();
            assert_eq!(matches!(fault, Fault::NoTunnel { .. }), is_told, "{entries:?}: {fault:?}");
            assert!(is_told || matches!(fault, Fault::NotInWorkflow { .. }), "{entries:?}: {fault:?}");
        }
        let other_port = open.judge(None, &tunnel("r.example:8443"));
        assert_eq!(other_port, Ok(Ground::Learning));
        for address in ["8.8.8.8:443", "127.0.0.1:80", "[2606:4700::1]:443"] {
            assert!(matches!(open.judge(None, &tunnel(address)), Err(Fault::NotAllowed { .. })), "{address}");
        }
    }

    #[test]
    fn a_credential_goes_where_its_prefix_says_and_nowhere_else() {
        let credential = |prefix: &str, token: &str| EgressCredential {
            url_prefix: prefix.parse().unwrap(),
            username: None,
            token: token.to_owned().into(),
        };
        let credentials =
            vec![credential("http://r.example/", "all"), credential("http://r.example/team/", "team")];
        let policy = Policy::new(&EgressUpstreams { credentials, ..EgressUpstreams::default() }).unwrap();
        let of = |wanted: &Wanted| {
            policy.credential(wanted).map(|login| login.authorization.to_str().unwrap().to_owned())
        };
        assert_eq!(of(&get("r.example", "/team/x")).as_deref(), Some("Bearer team"));
        assert_eq!(of(&get("r.example", "/team")).as_deref(), Some("Bearer team"));
        assert_eq!(of(&get("r.example", "/team/@scope%2fname")).as_deref(), Some("Bearer team"));
        for path in [
            "/teamwork",
            "/team/../x",
            "/team/%2e%2e/x",
            "/team/..;/x",
            "/team/..%3bx/y",
            "/team/%252e%252e/x",
            "/team/..%2fx",
            "/team%2f..%2fx",
            "/",
        ] {
            assert_eq!(of(&get("r.example", path)).as_deref(), Some("Bearer all"), "{path}");
        }
        assert_eq!(of(&get("r.example:8080", "/team/x")), None);
        assert_eq!(of(&get("x.r.example", "/team/x")), None);
        assert_eq!(of(&tunnel("r.example:80")), None);
        assert_eq!(of(&over_tls("r.example", "/team/x")), None, "one for plain HTTP is not for TLS");
        assert_eq!(of(&over_tls("r.example:80", "/team/x")), None);
    }

    #[test]
    fn a_credential_whose_host_is_written_with_a_final_dot_is_for_that_host() {
        for (prefix, wanted) in [
            ("https://r.example./team/", over_tls("r.example", "/team/x")),
            ("https://r.example/team/", over_tls("r.example.", "/team/x")),
            ("http://R.example.:8080/", get("r.example:8080", "/x")),
            ("https://[2001:DB8::1]/", over_tls("[2001:db8:0::1]:443", "/x")),
        ] {
            let credential = EgressCredential {
                url_prefix: prefix.parse().unwrap(),
                username: None,
                token: "t".to_owned().into(),
            };
            let upstreams = EgressUpstreams { credentials: vec![credential], ..EgressUpstreams::default() };
            assert!(Policy::new(&upstreams).unwrap().credential(&wanted).is_some(), "{prefix}");
        }
    }

    #[test]
    fn a_credential_for_tls_is_never_sent_in_plain() {
        let credential = |prefix: &str, token: &str| EgressCredential {
            url_prefix: prefix.parse().unwrap(),
            username: None,
            token: token.to_owned().into(),
        };
        let credentials = vec![
            credential("https://r.example/team/", "team"),
            credential("https://r.example:8443/", "other"),
        ];
        let policy = Policy::new(&EgressUpstreams { credentials, ..EgressUpstreams::default() }).unwrap();
        let of = |wanted: &Wanted| {
            policy.credential(wanted).map(|login| login.authorization.to_str().unwrap().to_owned())
        };
        assert_eq!(of(&over_tls("r.example", "/team/x")).as_deref(), Some("Bearer team"));
        assert_eq!(of(&over_tls("r.example:8443", "/x")).as_deref(), Some("Bearer other"));
        for wanted in [
            over_tls("r.example", "/teamwork"),
            get("r.example", "/team/x"),
            get("r.example:443", "/team/x"),
            get("r.example:8443", "/x"),
            tunnel("r.example:443"),
            tunnel("r.example:8443"),
        ] {
            assert_eq!(of(&wanted), None, "{wanted:?}");
        }
    }

    #[test]
    fn a_plain_request_goes_over_tls_where_a_rule_has_it_and_the_workflow_chose_it() {
        let both =
            policy(&["http://r.example/", "https://r.example/team/", "https://r.example:8443/team/"], &[]);
        let wanted = get("r.example", "/team/x");
        let (tls, other, plain) =
            (over_tls("r.example", "/team/x"), over_tls("r.example:8443", "/team/x"), wanted.clone());
        for (entries, way) in [
            (None, &tls),
            (Some(&["https://r.example/"][..]), &tls),
            (Some(&["r.example:443"]), &tls),
            (Some(&["http://r.example/", "https://r.example/"]), &tls),
            (Some(&["https://r.example:8443/"]), &other),
            (Some(&["http://r.example/"]), &plain),
        ] {
            let chosen = entries.map(chosen);
            assert_eq!(both.way(chosen.as_deref(), wanted.clone()), *way, "{entries:?}");
            assert_eq!(both.judge(chosen.as_deref(), way), Ok(Ground::Rule), "{entries:?}");
        }
        // What nobody chose is refused with the rule that is missing.
        let none = both.way(Some(&[]), wanted.clone());
        let fault = both.judge(Some(&[]), &none).unwrap_err();
        assert_eq!(fault, Fault::NotInWorkflow { rule: "https://r.example/team/x#GET".to_owned() });
        // Elsewhere it stays as it is.
        let elsewhere = get("r.example", "/else");
        assert_eq!(both.way(None, elsewhere.clone()), elsewhere);
        let tunnel = tunnel("r.example:443");
        assert_eq!(both.way(None, tunnel.clone()), tunnel);
        let no_tunnel = |target: &str, rule: &str, url: &str| {
            let fault = Fault::NoTunnel { rule: rule.to_owned(), url: url.to_owned() };
            assert_eq!(both.judge(None, &self::tunnel(target)), Err(fault));
        };
        no_tunnel("r.example:443", "r.example:443", "http://r.example/team/");
        no_tunnel("r.example:8443", "r.example:8443", "http://r.example:8443/team/");
        for other in ["r.example:80", "other.example:443"] {
            let fault = both.judge(None, &self::tunnel(other)).unwrap_err();
            assert!(matches!(fault, Fault::NotAllowed { .. }), "{other}: {fault:?}");
        }
        // Nobody is sent the plain way that the workflow did not choose.
        for (entries, is_told) in
            [(&[][..], false), (&["https://r.example:8443/"], false), (&["https://r.example/"], true)]
        {
            let fault = both.judge(Some(&chosen(entries)), &self::tunnel("r.example:443")).unwrap_err();
            assert_eq!(matches!(fault, Fault::NoTunnel { .. }), is_told, "{entries:?}: {fault:?}");
            assert!(is_told || matches!(fault, Fault::NotAllowed { .. }), "{entries:?}: {fault:?}");
        }
        // An HTTPS rule alone lets nothing out in plain.
        let tls_alone = policy(&["https://r.example/team/"], &[]);
        assert!(matches!(tls_alone.judge(None, &plain), Err(Fault::NotAllowed { .. })));
        let only_plain = tls_alone.way(Some(&chosen(&["http://r.example/"])), wanted);
        assert_eq!(only_plain, tls);
    }

    #[test]
    fn a_credential_that_cannot_be_used_is_refused() {
        for (prefix, token) in [
            ("ftp://r.example/", "t"),
            ("http://u@r.example/", "t"),
            ("http://r.example/", "t\n"),
            ("https://r.example../", "t"),
            ("https://r..example/", "t"),
        ] {
            let credential = EgressCredential {
                url_prefix: prefix.parse().unwrap(),
                username: None,
                token: token.to_owned().into(),
            };
            let upstreams = EgressUpstreams { credentials: vec![credential], ..EgressUpstreams::default() };
            assert!(Policy::new(&upstreams).is_err(), "{prefix}");
        }
    }
}
