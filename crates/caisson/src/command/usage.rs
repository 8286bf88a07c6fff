//! `caisson usage`: what model calls add up to, over the API.

use caisson_domain::budget::DAY_MS;
use caisson_domain::usage::USAGE_REPORT_DAYS_DEFAULT;
use caisson_store::Clock;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

use super::{DONE, client, complain, print, print_json};
use crate::cli::Usage;
use crate::client::Client;
use crate::render::{clean, dollars, utc};

/// Groups of one request.
const PAGE_GROUPS: u32 = 200;

/// Shows what was used.
///
/// # Errors
/// The server refuses, or is not there.
pub(crate) async fn run(flags: Usage) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let report = report(&client, &flags, Clock::system().now_ms()).await?;
    if flags.client.json {
        print_json(&report)?;
    } else {
        print(&table(&flags, &report));
        if report["next_cursor"].is_string() {
            complain("there is more; --limit shows more of it");
        }
    }
    Ok(DONE)
}

/// The pages as one report.
async fn report(client: &Client, flags: &Usage, now_ms: i64) -> anyhow::Result<Value> {
    let mut query = query(flags, now_ms);
    let (mut items, mut left) = (Vec::new(), flags.limit);
    loop {
        let limit = left.min(PAGE_GROUPS);
        let mut asked = query.clone();
        asked.push(("limit", limit.to_string()));
        let mut page = client.usage(&asked).await?;
        let found = page["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
        left -= limit;
        items.extend(found);
        let next = page["next_cursor"].as_str().map(str::to_owned);
        let Some(next) = next.filter(|_| left > 0) else {
            page["items"] = Value::Array(items);
            return Ok(page);
        };
        query.retain(|(name, _)| *name != "cursor");
        query.push(("cursor", next));
    }
}

/// What is asked for. The time is named, so that it is the same on every page.
fn query(flags: &Usage, now_ms: i64) -> Vec<(&'static str, String)> {
    let to_ms = flags.until.map_or(now_ms + 1, |until| until.ms(now_ms));
    let from_ms = flags.since.map_or(to_ms - USAGE_REPORT_DAYS_DEFAULT * DAY_MS, |since| since.ms(now_ms));
    let mut query = vec![
        ("by", flags.by.to_string()),
        ("from_ms", from_ms.max(0).to_string()),
        ("to_ms", to_ms.max(0).to_string()),
    ];
    let project = if flags.all_projects { Some("*".to_owned()) } else { flags.project.clone() };
    let named = [
        ("project", &project),
        ("run", &flags.run),
        ("session", &flags.session),
        ("workflow", &flags.workflow),
        ("model", &flags.model),
    ];
    query.extend(named.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    query
}

fn table(flags: &Usage, report: &Value) -> String {
    let mut table = Table::new();
    let head = flags.by.as_str().to_uppercase();
    table.load_style(presets::NOTHING).set_header([
        head.as_str(),
        "CALLS",
        "ESTIMATED",
        "INPUT",
        "OUTPUT",
        "CACHE READ",
        "CACHE WRITE",
        "COST",
    ]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for item in report["items"].as_array().into_iter().flatten() {
        table.add_row(row(&clean(item["key"].as_str().unwrap_or_default()), &item["usage"]));
    }
    table.add_row(row("total", &report["total"]));
    let time = |name: &str| report[name].as_i64().map(utc).unwrap_or_default();
    let whose = report["project"].as_str().map_or_else(|| "all projects".to_owned(), clean);
    format!("{whose}, {} to {}\n{}", time("from_ms"), time("to_ms"), table.trim_fmt())
}

fn row(key: &str, usage: &Value) -> [String; 8] {
    let number = |name: &str| usage[name].as_i64().unwrap_or(0);
    let written = number("cache_write_5m").saturating_add(number("cache_write_1h"));
    [
        key.to_owned(),
        number("calls").to_string(),
        number("estimated_calls").to_string(),
        number("input").to_string(),
        number("output").to_string(),
        number("cache_read").to_string(),
        written.to_string(),
        dollars(number("cost_micro_usd")),
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::cli::{Cli, Command};

    fn flags(arguments: &[&str]) -> Usage {
        let cli = Cli::try_parse_from(["caisson", "usage"].iter().chain(arguments)).unwrap();
        let Command::Usage(flags) = cli.command else { panic!("not usage") };
        flags
    }

    #[test]
    fn the_time_is_named_so_that_every_page_has_the_same() {
        let now_ms = 40 * DAY_MS;
        let text = |arguments: &[&str]| {
            let pairs = query(&flags(arguments), now_ms);
            pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
        };
        assert_eq!(text(&[]), format!("by=day&from_ms={}&to_ms={}", now_ms + 1 - 30 * DAY_MS, now_ms + 1));
        assert_eq!(
            text(&["--by", "run", "--since", "7d", "--until", "1d", "--workflow", "fix"]),
            format!("by=run&from_ms={}&to_ms={}&workflow=fix", 33 * DAY_MS, 39 * DAY_MS)
        );
        assert_eq!(
            text(&["--all-projects", "--since", "1970-01-02T00:00:00Z", "--model", "m"]),
            format!("by=day&from_ms={DAY_MS}&to_ms={}&project=*&model=m", now_ms + 1)
        );
        assert!(Cli::try_parse_from(["caisson", "usage", "--project", "a", "--all-projects"]).is_err());
        for limit in ["0", "10001"] {
            assert!(Cli::try_parse_from(["caisson", "usage", "--limit", limit]).is_err());
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_group_and_one_for_all() {
        let usage = json!({"calls": 2, "estimated_calls": 1, "input": 10, "output": 20, "cache_read": 30,
            "cache_write_5m": 4, "cache_write_1h": 5, "cost_micro_usd": 1_234_500});
        let report = json!({"project": null, "from_ms": 0, "to_ms": DAY_MS, "total": usage,
            "items": [{"key": "m\u{1b}[2J", "usage": usage}], "next_cursor": null});
        let text = table(&flags(&["--by", "model"]), &report);
        let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(text.lines().next(), Some("all projects, 1970-01-01T00:00:00Z to 1970-01-02T00:00:00Z"));
        assert_eq!(lines[2], ["m[2J", "2", "1", "10", "20", "30", "9", "$1.2345"]);
        assert_eq!(lines[3][0], "total");
    }
}
