//! How the database that there is reads for each statement.

use super::{Hot, Planned, Reads, all, judge};
use crate::database::{Tx, sql};
use crate::{Store, StoreError};

/// Values to ask with. What nothing is known of does no harm: an answer without rows is planned alike.
#[derive(Debug, Clone)]
pub struct Example {
    /// A run, and its session.
    pub run: String,
    /// See [`Example::run`].
    pub session: String,
    /// The number of one of its events, from somewhere in the middle.
    pub after: i64,
    /// A run that waits.
    pub waiting: String,
    /// A workflow and a repository of few runs.
    pub workflow: String,
    /// See [`Example::workflow`].
    pub repository: String,
    /// The hash of an API key.
    pub secret: String,
    /// The server that asks.
    pub server: String,
    /// The time, Unix ms.
    pub now_ms: i64,
    /// The time of the calls that reports count, Unix ms: from this one on, until before the second.
    pub calls_ms: [i64; 2],
}

/// How the database reads for a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What the statement asks for.
    pub name: &'static str,
    /// What it is planned for, where the database distinguishes that: these values, or all.
    pub planned: Option<&'static str>,
    /// The plan, in the database's own words, indented.
    pub lines: Vec<String>,
    /// Pages of 8 kB that it read when it was done, where the database tells.
    pub pages: Option<u64>,
    /// What it reads or does that it may not.
    pub fault: Option<String>,
    /// The index that it passes over for another one, which is a fault where there are many projects.
    pub passed_over: Option<&'static str>,
}

/// Tells how each statement is planned. On `PostgreSQL` it is also done, and undone: what it says of rows and pages is what was
/// read. Its statistics must be fresh, or it cannot know which tables are large.
///
/// # Errors
/// As every write.
/// # Cancel safety
/// Safe: whatever was done is given up.
pub async fn explain(store: &Store, example: &Example) -> Result<Vec<Plan>, StoreError> {
    let mut plans = Vec::new();
    if !store.is_shared() {
        for hot in all() {
            plans.push(sqlite(store, &hot).await?);
        }
        return Ok(plans);
    }
    let few = sql::query(FEW).bind(judge::FEW_ROWS).fetch_all(store.reader()).await?;
    let few = few.iter().map(|row| row.get("name")).collect::<Result<Vec<String>, _>>()?;
    for hot in all() {
        for (mode, planned) in modes(&hot) {
            let mut tx = store.begin().await?;
            let said = ask(&mut tx, &hot, example, mode).await;
            tx.rollback().await?;
            let (lines, pages) = read(said?);
            let fault = judge::postgres(&hot, &lines, pages, &few);
            let passed_over = judge::passed_over(&hot, &lines);
            plans.push(Plan { name: hot.name, planned: Some(planned), lines, pages, fault, passed_over });
        }
    }
    Ok(plans)
}

/// Tables that are known to be small.
const FEW: &str = "select cast(relname as text) as name from pg_class where relkind = 'r' \
     and relnamespace = cast(current_schema() as regnamespace) and reltuples >= 0 and reltuples < $1 order by name";

async fn sqlite(store: &Store, hot: &Hot) -> Result<Plan, StoreError> {
    let explain = sql::Statement::Built(format!("explain query plan {}", hot.text).into());
    let rows = sql::query(explain).fetch_all(store.reader()).await?;
    let mut steps = Vec::new();
    for row in &rows {
        steps.push((row.get::<i64>("id")?, row.get::<i64>("parent")?, row.get::<String>("detail")?));
    }
    let details: Vec<&str> = steps.iter().map(|(.., detail)| detail.as_str()).collect();
    let fault = judge::sqlite(hot, &details);
    let mut depths: Vec<(i64, usize)> = Vec::new();
    let mut lines = Vec::new();
    for (id, parent, detail) in &steps {
        let depth = depths.iter().find(|(id, _)| id == parent).map_or(0, |(_, depth)| depth + 1);
        depths.push((*id, depth));
        lines.push(format!("{:indent$}{detail}", "", indent = 2 * depth));
    }
    Ok(Plan { name: hot.name, planned: None, lines, pages: None, fault, passed_over: None })
}

/// The settings that make `PostgreSQL` plan as it does for the store, with what it then plans for.
fn modes(hot: &Hot) -> impl Iterator<Item = (&'static str, &'static str)> {
    let kept = match hot.reads {
        Reads::Index { planned: Planned::Once, .. } | Reads::Queue => true,
        Reads::Index { planned: Planned::EachTime, .. } | Reads::Calls => false,
    };
    let once = kept.then_some(("force_generic_plan", "all values"));
    std::iter::once(("force_custom_plan", "these values")).chain(once)
}

/// Has the statement done, and tells how.
async fn ask(tx: &mut Tx<'_>, hot: &Hot, example: &Example, mode: &str) -> Result<Vec<String>, StoreError> {
    let Hot { text, types, .. } = hot;
    let listed = |list: &str| if list.is_empty() { String::new() } else { format!("({list})") };
    let (types, values) = (listed(types), listed(&example.put_into(hot.values)));
    run(tx, format!("set local plan_cache_mode = {mode}")).await?;
    run(tx, format!("prepare question {types} as {text}")).await?;
    let explain = "explain (analyze, buffers, costs off, timing off, summary off)";
    let explain = sql::Statement::Built(format!("{explain} execute question {values}").into());
    let rows = sql::query(explain).planned_for_its_values().fetch_all(&mut *tx.db).await?;
    run(tx, "deallocate question".to_owned()).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?)
}

async fn run(tx: &mut Tx<'_>, text: String) -> Result<(), StoreError> {
    let statement = sql::Statement::Built(text.into());
    sql::query(statement).planned_for_its_values().execute(&mut *tx.db).await?;
    Ok(())
}

/// The steps of a plan that was done, and how many pages all of them read: what the first step is told to have read holds
/// what the steps below it did.
fn read(said: Vec<String>) -> (Vec<String>, Option<u64>) {
    let mut pages = None;
    let mut lines = Vec::new();
    // What planning read comes last, and is not the statement's.
    for line in said.into_iter().take_while(|line| !line.starts_with("Planning")) {
        match line.trim_start().strip_prefix("Buffers: ") {
            Some(buffers) => pages = pages.or_else(|| Some(shared(buffers))),
            None => lines.push(line),
        }
    }
    (lines, pages)
}

/// Pages that were found in memory, and pages that were not.
fn shared(buffers: &str) -> u64 {
    let shared = buffers.split(',').find_map(|part| part.trim().strip_prefix("shared "));
    let counts = shared.unwrap_or_default().split(' ').filter_map(|count| {
        let count = count.strip_prefix("hit=").or_else(|| count.strip_prefix("read="))?;
        count.parse::<u64>().ok()
    });
    counts.sum()
}

impl Example {
    /// Values with these in the place of their marks. They are constants of whoever measures or tests, and go into the text as
    /// they are.
    fn put_into(&self, values: &str) -> String {
        let [from_ms, to_ms] = self.calls_ms;
        let texts = [
            ("{run}", self.run.clone()),
            ("{session}", self.session.clone()),
            ("{after}", self.after.to_string()),
            ("{waiting}", self.waiting.clone()),
            ("{workflow}", self.workflow.clone()),
            ("{repository}", self.repository.clone()),
            ("{secret}", self.secret.clone()),
            ("{server}", self.server.clone()),
            ("{now}", self.now_ms.to_string()),
            ("{from}", from_ms.to_string()),
            ("{to}", to_ms.to_string()),
        ];
        texts.iter().fold(values.to_owned(), |values, (mark, text)| values.replace(mark, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_those_of_the_first_step_and_not_of_planning() {
        let said = [
            "Limit (actual rows=2 loops=1)",
            "  Buffers: shared hit=7 read=3 dirtied=1, temp read=5 written=5",
            "  ->  Index Scan using event_of_run on event (actual rows=2 loops=1)",
            "        Buffers: shared hit=6 read=3",
            "Planning:",
            "  Buffers: shared hit=100",
        ];
        let (lines, pages) = read(said.map(str::to_owned).to_vec());
        assert_eq!(pages, Some(10));
        assert_eq!(lines, [said[0], said[2]]);
        assert_eq!(read(vec!["Result (actual rows=1 loops=1)".to_owned()]).1, None);
    }
}
