//! Presets: the hosts that package managers use, read from their own configuration on this machine.
//!
//! No host is written here: where npm, pip, Cargo and apt are pointed at a mirror, the preset is that mirror. What is
//! read are the files and variables that the tools document; a preset for which nothing is found says so.

use std::fmt;
use std::path::{Path, PathBuf};

use caisson_domain::egress::{Preset, Rule};
use url::Url;

/// Largest configuration file that is read, in bytes.
const FILE_BYTES: u64 = 1024 * 1024;
/// Most files of a directory that are read.
const FILES: usize = 200;
/// What package managers do with a mirror when they install.
const METHODS: &str = "GET,HEAD";

/// Where the package managers' configuration is: a root, a home and their variables. Tests have their own.
#[derive(Clone, Default)]
pub(crate) struct Clients {
    /// `/`.
    root: PathBuf,
    /// The user's home, if there is one.
    home: Option<PathBuf>,
    /// Those of the environment's variables that are theirs.
    variables: Vec<(String, String)>,
}

impl fmt::Debug for Clients {
    /// Leaves out the variables' values: addresses of registries may hold a token.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Clients")
            .field("root", &self.root)
            .field("home", &self.home)
            .finish_non_exhaustive()
    }
}

/// What a preset came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The rules, one for each host.
    pub rules: Vec<Rule>,
    /// What people should know.
    pub notes: Vec<String>,
}

impl Clients {
    /// Those of the machine below `root`, for a process with these variables.
    pub(crate) fn new(root: &Path, variables: &[(String, String)]) -> Self {
        let theirs = |name: &str| {
            let name = name.to_ascii_lowercase();
            ["npm_config_", "pip_", "cargo_"].iter().any(|prefix| name.starts_with(prefix))
                || name == "xdg_config_home"
        };
        let home = variables.iter().find(|(name, value)| name == "HOME" && !value.is_empty());
        Self {
            root: root.to_owned(),
            home: home.map(|(_, home)| PathBuf::from(home)),
            variables: variables.iter().filter(|(name, _)| theirs(name)).cloned().collect(),
        }
    }

    /// Reads a preset.
    pub(crate) fn read(&self, preset: Preset) -> Found {
        let (texts, remedy) = match preset {
            Preset::Npm => (self.npm(), "set one with `npm config set registry URL`"),
            Preset::Pip => (self.pip(), "set one with `pip config set global.index-url URL`"),
            Preset::Cargo => (self.cargo(), "name one in [source] or [registries] of ~/.cargo/config.toml"),
            Preset::Apt => (self.apt(), "name one in /etc/apt/sources.list"),
        };
        let mut found = Found { rules: Vec::new(), notes: Vec::new() };
        for text in texts {
            match rule(&text) {
                Some(rule) if !found.rules.contains(&rule) => found.rules.push(rule),
                Some(_) => {}
                None => found.notes.push(format!(
                    "egress preset {preset}: an address in its configuration is neither http nor https and is left out"
                )),
            }
        }
        if found.rules.is_empty() {
            found.notes.push(format!(
                "egress preset {preset}: its configuration on this machine names no host, so it allows nothing; {remedy}, or \
                 write a rule in egress.allow"
            ));
        }
        found.notes.dedup();
        found
    }

    fn npm(&self) -> Vec<String> {
        let mut texts: Vec<String> = self.values(|name| name.eq_ignore_ascii_case("npm_config_registry"));
        let chosen = self.values(|name| name.eq_ignore_ascii_case("npm_config_userconfig"));
        let user = chosen.first().map(PathBuf::from).or_else(|| self.at_home(".npmrc"));
        let global = ["etc/npmrc", "usr/etc/npmrc", "usr/local/etc/npmrc"].map(|place| self.root.join(place));
        for file in user.into_iter().chain(global) {
            texts.extend(npmrc(&read(&file)));
        }
        texts
    }

    fn pip(&self) -> Vec<String> {
        let mut texts: Vec<String> = self
            .values(|name| matches!(name, "PIP_INDEX_URL" | "PIP_EXTRA_INDEX_URL"))
            .iter()
            .flat_map(|value| value.split_whitespace().map(str::to_owned))
            .collect();
        let config_home = self.values(|name| name == "XDG_CONFIG_HOME").first().map(PathBuf::from);
        let config_home = config_home.or_else(|| self.at_home(".config"));
        let files = [
            self.values(|name| name == "PIP_CONFIG_FILE").first().map(PathBuf::from),
            Some(self.root.join("etc/pip.conf")),
            Some(self.root.join("etc/xdg/pip/pip.conf")),
            config_home.map(|home| home.join("pip/pip.conf")),
            self.at_home(".pip/pip.conf"),
        ];
        for file in files.into_iter().flatten() {
            texts.extend(pip_conf(&read(&file)));
        }
        texts
    }

    fn cargo(&self) -> Vec<String> {
        let mut texts = self.values(|name| name.starts_with("CARGO_REGISTRIES_") && name.ends_with("_INDEX"));
        let home = self.values(|name| name == "CARGO_HOME").first().map(PathBuf::from);
        if let Some(home) = home.or_else(|| self.at_home(".cargo")) {
            for file in ["config.toml", "config"] {
                texts.extend(cargo_config(&read(&home.join(file))));
            }
        }
        texts
    }

    fn apt(&self) -> Vec<String> {
        let mut texts = one_line_sources(&read(&self.root.join("etc/apt/sources.list")));
        for file in files_in(&self.root.join("etc/apt/sources.list.d")) {
            match file.extension().and_then(|end| end.to_str()) {
                Some("list") => texts.extend(one_line_sources(&read(&file))),
                Some("sources") => texts.extend(deb822_sources(&read(&file))),
                Some(_) | None => {}
            }
        }
        texts
    }

    fn values(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let fitting = self.variables.iter().filter(|(name, value)| wanted(name) && !value.is_empty());
        fitting.map(|(_, value)| value.clone()).collect()
    }

    fn at_home(&self, place: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(place))
    }
}

/// A file's text; nothing if it is not there, cannot be read or is too large.
fn read(file: &Path) -> String {
    let fits = file.metadata().is_ok_and(|file| file.is_file() && file.len() <= FILE_BYTES);
    if fits { std::fs::read_to_string(file).unwrap_or_default() } else { String::new() }
}

fn files_in(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files.truncate(FILES);
    files
}

/// The rule for a mirror: its host and port. A user name or a token in the address stays where it is.
fn rule(text: &str) -> Option<Rule> {
    let text = text.strip_prefix("sparse+").unwrap_or(text);
    let url = Url::parse(text).ok()?;
    let (host, port) = (url.host_str()?, url.port_or_known_default()?);
    match url.scheme() {
        "https" => format!("{host}:{port}").parse().ok(),
        "http" => format!("http://{host}:{port}/#{METHODS}").parse().ok(),
        _ => None,
    }
}

/// `registry=URL` and `@scope:registry=URL`.
fn npmrc(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with([';', '#']));
    lines
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| key.trim() == "registry" || key.trim().ends_with(":registry"))
        .map(|(_, value)| unquoted(value).to_owned())
        .collect()
}

/// `index-url = URL` and `extra-index-url = URL…`, which may go on in the next lines.
fn pip_conf(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut within = false;
    for line in text.lines() {
        if line.trim_start().starts_with(['#', ';']) {
            continue;
        }
        let value = if line.starts_with([' ', '\t']) {
            if within { line } else { "" }
        } else {
            let (key, value) = line.split_once(['=', ':']).unwrap_or((line, ""));
            let key = key.trim().replace('_', "-");
            within = matches!(key.as_str(), "index-url" | "extra-index-url");
            if within { value } else { "" }
        };
        found.extend(value.split_whitespace().map(str::to_owned));
    }
    found
}

/// `registry` of a source, and `index` of a registry.
fn cargo_config(text: &str) -> Vec<String> {
    let Ok(table) = text.parse::<toml::Table>() else { return Vec::new() };
    let of = |group: &str, key: &str| -> Vec<String> {
        let members = table.get(group).and_then(toml::Value::as_table);
        let values = members.into_iter().flat_map(toml::Table::values);
        values.filter_map(|member| member.get(key)?.as_str().map(str::to_owned)).collect()
    };
    [of("source", "registry"), of("registries", "index")].concat()
}

/// `deb [options] URI suite component…`
fn one_line_sources(text: &str) -> Vec<String> {
    let uri = |line: &str| {
        let (kind, rest) = line.trim().split_once(char::is_whitespace)?;
        let rest = matches!(kind, "deb" | "deb-src").then(|| rest.trim_start())?;
        let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
        rest.split_whitespace().next().map(str::to_owned)
    };
    text.lines().filter_map(uri).collect()
}

/// `URIs: URI…`, which may go on in the next lines, of each paragraph that is not turned off.
fn deb822_sources(text: &str) -> Vec<String> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#')).peekable();
    let mut found = Vec::new();
    while lines.peek().is_some() {
        let paragraph = lines.by_ref().take_while(|line| !line.trim().is_empty());
        found.extend(deb822_source(paragraph));
    }
    found
}

fn deb822_source<'a>(paragraph: impl Iterator<Item = &'a str>) -> Vec<String> {
    /// What apt takes for no.
    const OFF: [&str; 5] = ["no", "false", "without", "off", "disable"];
    let (mut found, mut within, mut is_on) = (Vec::new(), false, true);
    for line in paragraph {
        let value = if line.starts_with([' ', '\t']) {
            if within { line } else { "" }
        } else {
            let (key, value) = line.split_once(':').unwrap_or((line, ""));
            if key.eq_ignore_ascii_case("enabled") {
                let value = value.trim();
                is_on = value != "0" && !OFF.iter().any(|off| value.eq_ignore_ascii_case(off));
            }
            within = key.eq_ignore_ascii_case("uris");
            if within { value } else { "" }
        };
        found.extend(value.split_whitespace().map(str::to_owned));
    }
    if is_on { found } else { Vec::new() }
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches(['"', '\''])
}

#[cfg(test)]
#[path = "presets_tests.rs"]
mod tests;
