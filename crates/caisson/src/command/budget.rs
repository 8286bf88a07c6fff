//! `caisson budget`: what the project's runs may spend, over the API.

use comfy_table::{Table, presets};
use serde_json::{Map, Value, json};

use super::{DONE, client, print, print_json};
use crate::cli::{Budget, SetBudget};
use crate::render::dollars;

/// Shows the budgets, or sets them and shows what came of it.
///
/// # Errors
/// The server refuses, or is not there.
pub(crate) async fn run(command: Budget) -> anyhow::Result<u8> {
    let (budget, json) = match command {
        Budget::Show { client: flags } => (client(&flags)?.budget().await?, flags.json),
        Budget::Set(flags) => (client(&flags.client)?.set_budget(&body(&flags)).await?, flags.client.json),
    };
    if json {
        print_json(&budget)?;
    } else {
        print(&table(&budget));
    }
    Ok(DONE)
}

/// What is left out stays as it is.
fn body(flags: &SetBudget) -> Value {
    let named = [("total_micro_usd", flags.total), ("day_micro_usd", flags.day)];
    let given = named.into_iter().filter_map(|(name, bound)| Some((name.to_owned(), json!(bound?.0))));
    Value::Object(given.collect::<Map<_, _>>())
}

fn table(budget: &Value) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["", "BUDGET", "SPENT", "HELD", "LEFT", "SET BY"]);
    for (name, title) in [("total", "in all"), ("day", "today (UTC)")] {
        let part = &budget[name];
        let amount = |field: &str, none: &str| part[field].as_i64().map_or_else(|| none.to_owned(), dollars);
        let by = match (part["is_setting"].as_bool(), part["budget_micro_usd"].is_null()) {
            (Some(true), _) => "settings",
            (_, false) => "API",
            (_, true) => "",
        };
        table.add_row([
            title.to_owned(),
            amount("budget_micro_usd", "no bound"),
            amount("spent_micro_usd", "?"),
            amount("reserved_micro_usd", "?"),
            amount("left_micro_usd", ""),
            by.to_owned(),
        ]);
    }
    table.trim_fmt()
}
