//! Commands about runs that exist already.

use std::io::IsTerminal;

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::{DONE, artifacts, attached, client, colour, print, print_json, submit, write_out};
use crate::checks;
use crate::cli::{Logs, One, Ps};
use crate::client::{Followed, Refused, RunInfo};
use crate::render::{Account, clean, dollars, utc};

/// `caisson logs`.
///
/// # Errors
/// The server refuses, or is not there.
pub(crate) async fn logs(flags: Logs) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let id = client.find_run(flags.run.as_deref()).await?;
    if flags.follow {
        // A server that goes away is waited for; one that was never there is not.
        client.run(&id).await?;
        return submit::follow(&client, &id, flags.client.json).await;
    }
    let mut account = Account::new(colour());
    for event in client.events(&id, 0).await? {
        if flags.client.json {
            print_json(&event)?;
        } else {
            write_out(&account.tell(&Followed::Event(event)));
        }
    }
    Ok(DONE)
}

/// `caisson ps`.
///
/// # Errors
/// The server refuses, or is not there.
pub(crate) async fn ps(flags: Ps) -> anyhow::Result<u8> {
    let runs = client(&flags.client)?.list_runs(flags.status.as_deref(), flags.limit).await?;
    if flags.client.json {
        for run in &runs {
            print_json(run)?;
        }
        return Ok(DONE);
    }
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["RUN", "CREATED", "STATUS", "WORKFLOW", "BRANCH", "COST", "TASK"]);
    for run in &runs {
        table.add_row(row(run));
    }
    print(&table.trim_fmt());
    Ok(DONE)
}

fn row(run: &RunInfo) -> [String; 7] {
    let status = match run.text("phase") {
        Some(phase) if run.status == "running" => format!("running/{phase}"),
        Some(_) | None => run.status.clone(),
    };
    let task: String =
        run.text("prompt").unwrap_or_default().lines().next().unwrap_or_default().chars().take(40).collect();
    [
        clean(&run.id),
        run.number("created_at_ms").map_or_else(|| "-".to_owned(), utc),
        clean(&status),
        clean(run.text("workflow").unwrap_or_default()),
        clean(run.text("branch").unwrap_or("-")),
        dollars(cost(run)),
        clean(&task),
    ]
}

fn cost(run: &RunInfo) -> i64 {
    run.rest.get("usage").and_then(|usage| usage["cost_micro_usd"].as_i64()).unwrap_or(0)
}

/// `caisson show`.
///
/// # Errors
/// The server refuses, or is not there.
pub(crate) async fn show(flags: One) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let run = client.run(&client.find_run(flags.run.as_deref()).await?).await?;
    if flags.client.json {
        print_json(&run)?;
        return Ok(DONE);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.add_row(["run", run.id.as_str()]).add_row(["status", run.status.as_str()]);
    for name in
        ["phase", "workflow", "repository", "base", "branch", "base_commit", "pushed_commit", "session_id"]
    {
        if let Some(text) = run.text(name) {
            table.add_row([name, &clean(text)]);
        }
    }
    for attachment in run.rest.get("attachments").and_then(Value::as_array).into_iter().flatten() {
        table.add_row(["attached", &attached::line(attachment)]);
    }
    for (row, held) in held_by(&run) {
        table.add_row([row, &held]);
    }
    for (row, name) in
        [("created", "created_at_ms"), ("started", "started_at_ms"), ("finished", "finished_at_ms")]
    {
        if let Some(at_ms) = run.number(name) {
            table.add_row([row, &utc(at_ms)]);
        }
    }
    if let (Some(start), Some(end)) = (run.number("started_at_ms"), run.number("finished_at_ms")) {
        table.add_row([
            "took",
            &format!("{:.1} s", std::time::Duration::from_millis((end - start).unsigned_abs()).as_secs_f64()),
        ]);
    }
    if let Some(usage) = run.rest.get("usage") {
        table.add_row(["usage", &usage_line(usage)]);
    }
    if let Some(failure) = run.rest.get("failure").filter(|failure| failure.is_object()) {
        let text = |name: &str| clean(failure[name].as_str().unwrap_or_default());
        table.add_row(["failure", &format!("{}: {}", text("kind"), text("message"))]);
        if let Some(evidence) = failure["evidence"].as_str() {
            table.add_row(["evidence", &clean(evidence)]);
        }
    }
    for check in run.rest.get("checks").and_then(Value::as_array).into_iter().flatten() {
        table.add_row(["check", &checks::line(check)]);
    }
    if let Some(told) = checks::not_run(&run) {
        table.add_row(["check", &told]);
    }
    if let Some(result) = run.rest.get("result").and_then(Value::as_str) {
        table.add_row(["result", &clean(result)]);
    }
    let kept = client.artifacts(&run.id).await?;
    if !kept.is_empty() {
        table.add_row(["artifacts", &artifacts::names(&kept)]);
    }
    print(&table.trim_fmt());
    Ok(DONE)
}

/// Why a waiting run cannot start, one row each.
fn held_by(run: &RunInfo) -> Vec<(&'static str, String)> {
    let held = run.rest.get("held_by").and_then(Value::as_array).into_iter().flatten();
    let text = |held: &Value, name: &str| clean(held[name].as_str().unwrap_or_default());
    held.map(|held| ("held by", format!("{}: {}", text(held, "code"), text(held, "message")))).collect()
}

fn usage_line(usage: &Value) -> String {
    let number = |name: &str| usage[name].as_i64().unwrap_or(0);
    let estimated = match number("estimated_calls") {
        0 => String::new(),
        some => format!(" ({some} of them estimated)"),
    };
    let plural = if number("calls") == 1 { "" } else { "s" };
    format!(
        "{} call{plural}{estimated}, {} in, {} out, {} read from the cache, {} written to it; {}",
        number("calls"),
        number("input"),
        number("output"),
        number("cache_read"),
        number("cache_write_5m") + number("cache_write_1h"),
        dollars(number("cost_micro_usd"))
    )
}

/// `caisson diff`.
///
/// # Errors
/// The server refuses, is not there, or has no patch.
pub(crate) async fn diff(flags: One) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let id = client.find_run(flags.run.as_deref()).await?;
    let patch = match client.diff(&id).await {
        Ok(patch) => patch,
        Err(error) if error.downcast_ref::<Refused>().is_some_and(|refused| refused.has_code("no_diff")) => {
            return Err(artifacts::without_patch(&id, &client.artifacts(&id).await?, error));
        }
        Err(error) => return Err(error),
    };
    if flags.client.json {
        print_json(&json!({"run": id, "patch": patch}))?;
        return Ok(DONE);
    }
    // A pager and a person get the patch without control characters; `git apply` behind a pipe gets it as it is.
    write_out(&if std::io::stdout().is_terminal() { clean(&patch) } else { patch });
    Ok(DONE)
}

/// `caisson cancel`.
///
/// # Errors
/// The server refuses, or is not there.
pub(crate) async fn cancel(flags: One) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let run = client.cancel(&client.find_run(flags.run.as_deref()).await?).await?;
    if flags.client.json {
        print_json(&run)?;
    } else if run.is_final() {
        print(&format!("run {} is {}", run.id, run.status));
    } else {
        print(&format!("run {} was told to stop; its work is saved first", run.id));
    }
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_column_of_the_table_moves_a_terminal_or_turns_its_text() {
        let bad = "x\u{1b}[2J\u{9b}1m\u{202e}y";
        let info: RunInfo = serde_json::from_value(json!({
            "id": bad, "status": bad, "phase": bad, "workflow": bad, "branch": bad, "prompt": bad,
        }))
        .unwrap();
        for cell in row(&info) {
            assert_eq!(cell, clean(&cell), "{cell:?}");
        }
        assert!(row(&info)[3].contains("x[2J1my"), "{:?}", row(&info)[3]);
    }

    #[test]
    fn usage_tells_of_the_cache_and_of_estimates() {
        let mut usage = json!({
            "calls": 6, "estimated_calls": 0, "input": 1, "output": 2, "cache_read": 3, "cache_write_5m": 4,
            "cache_write_1h": 5, "cost_micro_usd": 94_100,
        });
        let told = "6 calls, 1 in, 2 out, 3 read from the cache, 9 written to it; $0.0941";
        assert_eq!(usage_line(&usage), told);
        let one = json!({"calls": 1, "estimated_calls": 0});
        assert!(usage_line(&one).starts_with("1 call, 0 in"), "{}", usage_line(&one));
        usage["estimated_calls"] = json!(2);
        assert!(usage_line(&usage).starts_with("6 calls (2 of them estimated), "), "{}", usage_line(&usage));
    }
}
