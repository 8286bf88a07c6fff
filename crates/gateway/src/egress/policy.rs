//! Whether a wish is among the rules: the operator's are the ceiling, a workflow chooses below it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use caisson_domain::checks::{Check, stands};
use caisson_domain::egress::{Choice, Preset, Rule, Via, Wanted, is_plain};
use secrecy::ExposeSecret;

use super::config::{EgressCredential, EgressUpstreams};
use super::fault::Fault;
use crate::config::{GatewayError, check_url, secret_header};
use crate::credentials::RegistryLogin;

/// The operator's rules, ready to be asked.
pub(super) struct Policy {
    rules: Vec<Rule>,
    presets: Vec<(Preset, Vec<Rule>)>,
    credentials: Vec<(EgressCredential, RegistryLogin)>,
}

impl Policy {
    pub(super) fn new(upstreams: &EgressUpstreams) -> Result<Self, GatewayError> {
        const WHICH: &str = "an egress credential's URL prefix";
        let ready = |credential: &EgressCredential| {
            check_url(WHICH, &credential.url_prefix)?;
            if credential.url_prefix.scheme() != "http" {
                let reason = "it is not http; nothing can be added to what is encrypted end to end";
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
            credentials: upstreams.credentials.iter().map(ready).collect::<Result<_, _>>()?,
        })
    }

    /// Refuses what the operator's rules do not have, and what the workflow did not choose among them.
    pub(super) fn judge(&self, chosen: Option<&[String]>, wanted: &Wanted) -> Result<(), Fault> {
        let any = |rules: &[Rule]| rules.iter().any(|rule| rule.allows(wanted));
        if !stands(Check::EgressRules) {
            return Ok(());
        }
        if !any(&self.rules) && !self.presets.iter().any(|(_, rules)| any(rules)) {
            return Err(Fault::NotAllowed { rule: Rule::exactly(wanted).to_string() });
        }
        let allows = |entry: &String| match entry.parse() {
            Ok(Choice::Preset(chosen)) => {
                self.presets.iter().any(|(preset, rules)| *preset == chosen && any(rules))
            }
            Ok(Choice::Rule(rule)) => rule.allows(wanted),
            // Another version may have written it; what is not understood allows nothing.
            Err(_) => false,
        };
        if chosen.is_some_and(|entries| !entries.iter().any(allows)) {
            return Err(Fault::NotInWorkflow { rule: Rule::exactly(wanted).to_string() });
        }
        Ok(())
    }

    /// The credential that a plain request is sent with: that of the longest prefix.
    pub(super) fn credential(&self, wanted: &Wanted) -> Option<&RegistryLogin> {
        let Via::Http { path, .. } = &wanted.via else { return None };
        let covers = |credential: &EgressCredential| {
            let url = &credential.url_prefix;
            let prefix = url.path().trim_end_matches('/');
            let below =
                path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            url.host_str() == Some(wanted.target.host.to_string().as_str())
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
    use caisson_domain::egress::Target;

    fn tunnel(target: &str) -> Wanted {
        Wanted { target: Target::parse(target, None).unwrap(), via: Via::Tunnel }
    }

    fn get(target: &str, path: &str) -> Wanted {
        let via = Via::Http { method: "GET".to_owned(), path: path.to_owned() };
        Wanted { target: Target::parse(target, Some(80)).unwrap(), via }
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
            assert_eq!(policy.judge(None, wanted), Ok(()));
            let none = policy.judge(Some(&[]), wanted);
            assert!(matches!(none, Err(Fault::NotInWorkflow { .. })));
        }
        assert_eq!(policy.judge(Some(&chosen(&["a.example.com"])), &here), Ok(()));
        assert_eq!(policy.judge(Some(&chosen(&["npm"])), &npm), Ok(()));
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
        for path in ["/teamwork", "/team/../x", "/team/%2e%2e/x", "/"] {
            assert_eq!(of(&get("r.example", path)).as_deref(), Some("Bearer all"), "{path}");
        }
        assert_eq!(of(&get("r.example:8080", "/team/x")), None);
        assert_eq!(of(&get("x.r.example", "/team/x")), None);
        assert_eq!(of(&tunnel("r.example:80")), None);
    }

    #[test]
    fn a_credential_for_what_is_encrypted_is_refused() {
        for (prefix, token) in
            [("https://r.example/", "t"), ("http://u@r.example/", "t"), ("http://r.example/", "t\n")]
        {
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
