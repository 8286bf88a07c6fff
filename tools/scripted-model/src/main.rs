//! The scripted model as a program of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use scripted_model::{DelayScale, KeyDigest, MAX_CONNECTIONS, Options, ScriptedModel};
use tokio::signal::unix::{SignalKind, signal};

/// A scripted Messages API server: answers from scenarios, and keeps a record of every request.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// TCP address to listen on; port 0 takes a free one [default: 127.0.0.1:0 unless --unix is given]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Unix socket to listen on
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// Scenario file, or directory with *.scenario.json files; may be given several times
    #[arg(long, value_name = "FILE|DIR")]
    scenarios: Vec<PathBuf>,
    /// Scenario for requests that name none
    #[arg(long, value_name = "NAME", default_value = "text")]
    scenario: String,
    /// Answer 401 to requests without this key (x-api-key or bearer); may be given several times
    #[arg(long, value_name = "KEY")]
    require_key: Vec<String>,
    /// Append two JSON lines for each request to this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Factor for every delay, 0 for none
    #[arg(long, value_name = "FACTOR", default_value = "1")]
    delay_scale: DelayScale,
    /// Compress every reply, whatever the client accepts
    #[arg(long)]
    gzip: bool,
}

impl Arguments {
    fn into_options(self) -> Options {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Options {
            listen: self.listen.or_else(|| self.unix.is_none().then_some(local)),
            unix: self.unix,
            scenarios: self.scenarios,
            inline_scenarios: Vec::new(),
            default_scenario: self.scenario,
            required_keys: self.require_key.iter().map(|key| KeyDigest::of(key)).collect(),
            log: self.log,
            delay_scale: self.delay_scale,
            gzip: self.gzip,
            max_connections: MAX_CONNECTIONS,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse().into_options()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the one place where the program says why it failed")]
            let () = eprintln!("scripted-model: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the address on standard output is what callers wait for")]
async fn run(options: Options) -> anyhow::Result<()> {
    let unix = options.unix.clone();
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let model = ScriptedModel::start(options).await?;
    if model.address().is_some() {
        println!("listening {}", model.base_url());
    }
    if let Some(path) = unix {
        println!("listening unix:{}", path.display());
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    model.shutdown().await;
    Ok(())
}
