//! Temporary measurement.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "temporary")]
use std::time::Instant;
use caisson_domain::event::*; use caisson_domain::grant::*; use caisson_domain::id::*; use caisson_domain::run::*; use caisson_domain::workflow::*; use caisson_domain::usage::*;
use caisson_store::*;
fn report(name: &str, mut t: Vec<f64>) { t.sort_by(f64::total_cmp); println!("{name}: p50 {:.3} ms p99 {:.3} ms (n={})", t[t.len()/2], t[t.len()*99/100], t.len()); }
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("m.db");
    for s in ["", "-wal", "-shm"] { drop(std::fs::remove_file(dir.join(format!("m.db{s}")))); }
    let store = Store::open(&path, Clock::system()).await.unwrap();
    let p = ProjectId::default_project();
    let server = ServerId::new(1,[1;10]); store.register_server(&server).await.unwrap();
    let wf = Workflow { name: "bug-fixer".into(), description: "x".into(), prompt: "y".repeat(2000), tools: None, disallowed_tools: vec![], model: None, permission_mode: PermissionMode::Default, max_turns: None, mcp_servers: Default::default(), caisson: CaissonBlock::default() };
    let spec = RunSpec { workflow: wf, prompt: "Fix".into(), repository: None, base: None, branch: None, model: None, max_turns: None, image: None, timeout_s: 600, resources: Resources::default(), environment: Default::default() };
    let time = async |_n: &str| Instant::now();
    let mut create = vec![]; let mut claim = vec![]; let mut hb = vec![]; let mut runs = vec![];
    for _ in 0..500 {
        let t = time("").await; let r = store.create_run(NewRun { project: p.clone(), created_by: None, spec: spec.clone(), idempotency: Some(Idempotency { key: format!("{}", create.len()), request_sha256: "x".into() }) }).await.unwrap(); create.push(t.elapsed().as_secs_f64()*1e3);
        let CreateRun::Created(_r) = r else { panic!() };
        let t = Instant::now(); let c = store.claim(&server).await.unwrap().unwrap(); claim.push(t.elapsed().as_secs_f64()*1e3);
        let t = Instant::now(); store.heartbeat(&c.run.id, c.epoch).await.unwrap(); hb.push(t.elapsed().as_secs_f64()*1e3);
        runs.push(c);
    }
    report("create_run (idempotent)", create); report("claim", claim); report("heartbeat", hb);
    let c = &runs[0];
    let sb = SandboxId::new(1,[1;10]);
    let g = Token::grant(GrantKind::Agent,[0;32]).hash();
    store.create_sandbox(&NewSandbox { id: sb.clone(), session: c.run.session.clone(), server: server.clone(), engine: "docker".into(), image: "i".into(), uid: 1, control: g.clone(), agent: g.clone() }).await.unwrap();
    store.place(&c.run.id, c.epoch, &sb).await.unwrap();
    let line = format!("{{\"type\":\"assistant\",\"message\":\"{}\"}}", "z".repeat(600));
    let mut off = 0;
    for n in [1usize, 50, 500] {
        let mut t1 = vec![];
        for _ in 0..(if n==500 {100} else {500}) {
            let entries: Vec<_> = (0..n).map(|_| JournalEntry { run: c.run.id.clone(), attempt: 1, event: NewEvent::from_raw(EventKind::AgentLine, line.clone()), effect: JournalEffect::None }).collect();
            let t = Instant::now(); store.append_journal(&sb, off, off+10, entries).await.unwrap(); t1.push(t.elapsed().as_secs_f64()*1e3); off += 10;
        }
        report(&format!("append_journal {n}"), t1);
    }
    let mut t1=vec![]; let mut t2=vec![];
    for _ in 0..500 { let t=Instant::now(); let id = store.begin_model_call(&c.run.id, &NewModelCall{model:"m".into(), estimate: TokenCounts::default(), estimate_cost_micro_usd: 1}).await.unwrap(); t1.push(t.elapsed().as_secs_f64()*1e3);
      let t=Instant::now(); store.settle_model_call(&id, &SettledCall{model:"m".into(),status:200,tokens:TokenCounts::default(),cost_micro_usd:1,estimated:false,first_byte_ms:None,duration_ms:1}).await.unwrap(); t2.push(t.elapsed().as_secs_f64()*1e3);}
    report("begin_model_call", t1); report("settle_model_call", t2);
    let mut t1=vec![]; let mut t2=vec![]; let mut t3=vec![]; let mut t4=vec![];
    for i in 0..500 { let t=Instant::now(); let e = store.events(&c.run.id, i*50, 100).await.unwrap(); assert_eq!(e.len(),100); t1.push(t.elapsed().as_secs_f64()*1e3);
      let t=Instant::now(); store.progress(&c.run.id, c.epoch).await.unwrap().unwrap(); t2.push(t.elapsed().as_secs_f64()*1e3);
      let t=Instant::now(); store.check_grant(&sb, GrantKind::Agent, &g).await.unwrap(); t3.push(t.elapsed().as_secs_f64()*1e3);
      let t=Instant::now(); store.next_work(&sb).await.unwrap(); t4.push(t.elapsed().as_secs_f64()*1e3);}
    report("events page of 100", t1); report("progress", t2); report("check_grant", t3); report("next_work", t4);
    let mut t1=vec![]; for _ in 0..500 { let t=Instant::now(); store.ping().await.unwrap(); t1.push(t.elapsed().as_secs_f64()*1e3);} report("ping (one-row commit)", t1);
    store.close().await.unwrap();
    println!("size {} MB", std::fs::metadata(&path).unwrap().len()/1_000_000);
}
