//! The shim at other places than a sandbox's, for tests: `caisson-shim-at FILE`, a JSON file with all that a sandbox's
//! shim knows by itself or from its environment.

use std::error::Error;
use std::time::Duration;

use caisson_shim::{Grants, Patience, Places, Setup, hide, run};
use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    hide()?;
    let file = std::env::args().nth(1).ok_or("no file is named")?;
    let given: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let text = |name: &str| given[name].as_str().unwrap_or_default().to_owned();
    let product = Patience::of_a_sandbox();
    let time =
        |name: &str, otherwise: Duration| given[name].as_u64().map_or(otherwise, Duration::from_millis);
    let setup = Setup {
        places: Places {
            door: text("door").into(),
            journal: text("journal").into(),
            workspace: text("workspace").into(),
            home: text("home").into(),
            agent: text("agent").into(),
            shim: text("shim").into(),
            tmp: text("tmp").into(),
            loopback: "127.0.0.1:0".parse()?,
        },
        grants: Grants::new(&text("control_grant"), &text("agent_grant"))?,
        path: text("path"),
        patience: Patience {
            begin: time("begin_ms", product.begin),
            silence: time("silence_ms", product.silence),
            tool: time("tool_ms", product.tool),
            interrupt: time("interrupt_ms", product.interrupt),
            quiet: time("quiet_ms", product.quiet),
            exit: time("exit_ms", product.exit),
            question: time("question_ms", product.question),
            git: time("git_ms", product.git),
            keep: time("keep_ms", product.keep),
            servers: time("servers_ms", product.servers),
            servers_least: time("servers_least_ms", product.servers_least),
            ..product
        },
        holds: given["holds"].as_bool().unwrap_or(true),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(run(setup))?)
}
