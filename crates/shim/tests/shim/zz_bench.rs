use crate::sandbox::*;
use crate::gateway::Model;
use caisson_domain::protocol::Ending;
use scripted_model::{Options, ScriptedModel};
use serde_json::json;
use std::time::Instant;

#[tokio::test]
async fn zz_bench() {
    let bash = |c: &str| json!({"tool": {"name": "Bash", "input": {"command": c, "description": "Run"}}});
    let scenario = json!({"prompts": [[bash("cat a.txt"), bash("printf 'two\\n' >> a.txt"), bash("git commit -qam 'fix: add a line'"), {"text": "Done."}]]});
    let options = Options { inline_scenarios: vec![json!({"it": scenario}).to_string()], default_scenario: "it".into(), ..Options::default() };
    let model = ScriptedModel::start(options).await.unwrap();
    let address = model.address().unwrap().to_string();
    let (mut shim, mut script) = (vec![], vec![]);
    for i in 0..9 {
        let mut sandbox = Sandbox::with_repository("");
        sandbox.set("agent", std::env::var("CAISSON_CLAUDE_BIN").unwrap());
        let a = address.clone();
        sandbox.gateway.with(|s| s.model = Model::Upstream(a));
        sandbox.start();
        std::thread::sleep(std::time::Duration::from_millis(100));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let mut work = git_work("Add a line"); work.agent.environment.insert("IS_SANDBOX".into(), "1".into());
        let t = Instant::now();
        sandbox.deliver(work.clone());
        let has = |s: &crate::gateway::State, k: &str| { let k = format!("\"kind\":\"{k}\""); s.journal.windows(k.len()).any(|w| w == k.as_bytes()) };
        let mut marks = vec![];
        for k in ["prepared", "line", "finished"] {
            sandbox.gateway.wait_for(k, |s| has(s, k).then_some(())).await;
            marks.push(format!("{k} {}", t.elapsed().as_millis()));
        }
        let d = t.elapsed();
        let outcome = sandbox.outcome(&work.run).await;
        assert_eq!(outcome.ending, Ending::Completed);
        sandbox.exit().await;
        if i > 0 { shim.push(d.as_millis()); println!("shim {d:?} {}", marks.join(", ")); }
        // script
        let sb2 = Sandbox::with_repository("");
        let sh = sb2.place("run.sh");
        std::fs::write(&sh, format!("set -e\ngit clone -q -b main bare.git ws\ncd ws\ngit checkout -q -b work\ngit config user.name x; git config user.email x@y\n{} -p --output-format stream-json --verbose --setting-sources= --strict-mcp-config --permission-mode bypassPermissions 'Add a line' </dev/null >../out.jsonl\ngit push -q origin HEAD\n", std::env::var("CAISSON_CLAUDE_BIN").unwrap())).unwrap();
        let t = Instant::now();
        let st = tokio::process::Command::new("/bin/sh").arg(&sh).current_dir(sb2.directory.path()).env_clear()
            .env("PATH", SEARCH_PATH).env("HOME", sb2.place("home")).env("ANTHROPIC_BASE_URL", format!("http://{address}")).env("ANTHROPIC_AUTH_TOKEN","x")
            .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC","1").env("DISABLE_AUTOUPDATER","1").env("CLAUDE_CODE_DISABLE_BACKGROUND_TASKS","1").env("IS_SANDBOX","1").env("LANG","C.UTF-8").status().await.unwrap();
        assert!(st.success());
        let d = t.elapsed();
        if i > 0 { script.push(d.as_millis()); println!("script {d:?}"); }
    }
    shim.sort(); script.sort();
    println!("median shim {} script {}", shim[shim.len()/2], script[script.len()/2]);
}
