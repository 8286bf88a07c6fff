//! A real server with real sandboxes, whose agents wait for ever for their first reply, and calls past them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use scripted_model::Record;
use serde_json::{Value, json};
use testkit::engine::{Engine, variable};
use testkit::parts::Parts;
use testkit::world::{NEXT_MODEL_KEY, World, WorldSpec};

use super::calls::{Call, Done, Way, call};

/// Sandboxes: each may have 16 calls under way, and one is its agent's own.
const SANDBOXES: usize = 5;
/// How long sandboxes may take until their agents wait.
const READY: Duration = Duration::from_mins(1);
/// Bytes of a request, about what Claude Code sends first.
const REQUEST_BYTES: usize = 50_000;
/// Words of the long reply: a megabyte of events.
const WORDS: u32 = 6_000;

/// The key in the store: another than the configured one, so that the one shows that it was sent.
const STORED_MODEL_KEY: &str = NEXT_MODEL_KEY;

/// Everything that calls go through.
pub(super) struct Scene {
    world: World,
    direct: reqwest::Client,
    doors: Vec<Door>,
}

struct Door {
    client: reqwest::Client,
    grant: String,
}

/// What was the same on both ways, in numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Compared {
    pub(super) request_bytes: usize,
    pub(super) request_headers: usize,
    pub(super) reply_bytes: usize,
    pub(super) reply_headers: usize,
}

/// Many streams at once.
pub(super) struct Streams {
    pub(super) bytes: usize,
    pub(super) took: Duration,
    pub(super) first_bytes_ms: Vec<f64>,
}

impl Streams {
    /// Everything that was read.
    pub(super) fn megabytes(&self) -> anyhow::Result<f64> {
        Ok(f64::from(u32::try_from(self.bytes).context("more than 4 GB were read")?) / 1e6)
    }
}

impl Scene {
    pub(super) async fn open(parts: &Parts) -> anyhow::Result<Self> {
        let scenarios = json!({
            "held": {"prompts": [[{"hang": true}]]},
            "short": {"prompts": [[{"text": "A few words."}]]},
            "long": {"prompts": [[{"text": "word ", "text_repeat": WORDS}]]},
        });
        let spec = WorldSpec {
            scenario: "held".to_owned(),
            scenarios: vec![scenarios.to_string()],
            variables: vec![("SLOTS".to_owned(), SANDBOXES.to_string())],
            ..WorldSpec::on(Engine::Local)
        };
        let world = World::start(parts, spec).await?;
        // Stored, as a team's is: what is configured is sent without being opened.
        let credential =
            json!({"name": "model", "kind": "model_api_key", "secret": {"value": STORED_MODEL_KEY}});
        let added = world.api_with("credentials")?.post("/v1/credentials", &credential).await?;
        ensure!(added.status == 201, "the credential was not added: {}", added.body);
        let body = json!({"workflow": "bug-fixer", "prompt": "Wait.", "repository": null});
        for _ in 0..SANDBOXES {
            world.api.submit(&body).await?;
        }
        let waiting = world.model.wait_for(|records| records.len() >= SANDBOXES);
        tokio::time::timeout(READY, waiting).await.context("the agents did not come to their first call")?;
        let doors =
            world.sandboxes()?.iter().map(|name| door(&world, name)).collect::<Result<Vec<_>, _>>()?;
        ensure!(doors.len() == SANDBOXES, "{} sandboxes instead of {SANDBOXES}", doors.len());
        let direct = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { world, direct, doors })
    }

    /// One call whose reply is read to its end.
    pub(super) async fn call(&self, way: Way, number: usize, kind: Call) -> anyhow::Result<Done> {
        call(self.request(way, number, kind), false).await
    }

    fn request(&self, way: Way, number: usize, kind: Call) -> reqwest::RequestBuilder {
        let door = &self.doors[number % self.doors.len()];
        let request = match way {
            Way::Direct => {
                let url = format!("{}/v1/messages?beta=true", self.world.model.base_url());
                self.direct
                    .post(url)
                    .header("x-api-key", STORED_MODEL_KEY)
                    .header("accept-encoding", "identity")
            }
            Way::Door => {
                let request = door.client.post("http://gateway/model/v1/messages?beta=true");
                request.bearer_auth(&door.grant).header("accept-encoding", "gzip, deflate, br, zstd")
            }
        };
        headers()
            .into_iter()
            .fold(request, |request, (name, value)| request.header(name, value))
            .body(body(kind))
    }

    /// Many streams at once, over all doors.
    ///
    /// # Errors
    /// A reply is not so many bytes long as each is.
    pub(super) async fn streams(&self, way: Way, count: usize, each: usize) -> anyhow::Result<Streams> {
        let mut set = tokio::task::JoinSet::new();
        let began = Instant::now();
        for number in 0..count {
            set.spawn(call(self.request(way, number, Call::Long), false));
        }
        let mut streams = Streams { bytes: 0, took: Duration::ZERO, first_bytes_ms: Vec::new() };
        while let Some(done) = set.join_next().await {
            let done = done??;
            ensure!(done.body.len() == each, "a stream has {} bytes of {each}", done.body.len());
            streams.bytes += done.body.len();
            streams.first_bytes_ms.push(done.first_byte.as_secs_f64() * 1000.0);
        }
        streams.took = began.elapsed();
        Ok(streams)
    }

    /// Sends the same request both ways and looks at everything that arrives at either end.
    pub(super) async fn compare(&self) -> anyhow::Result<Compared> {
        let mut ways = Vec::new();
        for way in [Way::Direct, Way::Door] {
            let done = call(self.request(way, 0, Call::Long), true).await?;
            let record = self.world.model.records().pop().context("the model saw no request")?;
            ensure!(record.bytes_served == done.body.len() as u64, "{way:?}: bytes of the reply are missing");
            ways.push((seen(&record), done));
        }
        let [(direct_seen, direct), (door_seen, door)] =
            <[_; 2]>::try_from(ways).ok().context("two ways were gone")?;
        ensure!(direct_seen == door_seen, "the requests differ: {direct_seen:#?} {door_seen:#?}");
        ensure!(direct.status == door.status, "the statuses differ");
        let replies = [&direct, &door].map(|done| without_ids(&done.body));
        ensure!(replies[0] == replies[1], "the bodies of the replies differ");
        let names = |done: &Done| -> BTreeMap<String, Vec<u8>> {
            // Ids and the date are the model's own and differ from reply to reply.
            let kept =
                done.headers.iter().filter(|(name, _)| !matches!(name.as_str(), "request-id" | "date"));
            kept.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect()
        };
        ensure!(
            names(&direct) == names(&door),
            "the headers of the replies differ: {:?} {:?}",
            direct.headers,
            door.headers
        );
        Ok(Compared {
            request_bytes: body(Call::Long).len(),
            request_headers: door_seen["headers"].as_object().map_or(0, serde_json::Map::len),
            reply_bytes: door.body.len(),
            reply_headers: direct.headers.len(),
        })
    }

    /// Whether the server has counted every call that went through the doors, to its last token. As many have gone directly.
    pub(super) async fn check_counted(&self) -> anyhow::Result<()> {
        let runs = self.world.api.get("/v1/runs").await?.body;
        let runs = runs["items"].as_array().context("no runs")?;
        let sum = |name: &str| runs.iter().filter_map(|run| run["usage"][name].as_u64()).sum::<u64>();
        let records = self.world.model.records();
        let answered: Vec<_> = records.iter().filter(|record| record.usage_final).collect();
        let output: u64 =
            answered.iter().filter_map(|record| record.usage.as_ref()).map(|usage| usage.output_tokens).sum();
        ensure!(sum("estimated_calls") == 0, "calls were estimated");
        let calls = of_doors(sum("calls"))?;
        let counted = (2 * calls, 2 * sum("output"));
        let served = (answered.len() as u64, output);
        ensure!(counted == served, "twice what was counted is {counted:?}, and what was served {served:?}");
        Ok(())
    }
}

/// The calls that went through the doors beside the agents' own; pure. Each agent has one, which it waits for.
fn of_doors(counted: u64) -> anyhow::Result<u64> {
    let agents = SANDBOXES as u64;
    counted
        .checked_sub(agents)
        .with_context(|| format!("the server counts {counted} calls, and {agents} are the agents' own"))
}

/// The grant and the socket of a sandbox.
fn door(world: &World, sandbox: &str) -> anyhow::Result<Door> {
    let grant = |pid| variable(pid, "ANTHROPIC_AUTH_TOKEN").ok();
    let grant = world.processes(sandbox)?.into_iter().find_map(grant).context("no agent has a grant")?;
    let socket: PathBuf = world.state_dir().join("doors").join(sandbox).join("gateway.sock");
    ensure!(socket.exists(), "\"{}\" is not there", socket.display());
    let client = reqwest::Client::builder().no_proxy().unix_socket(socket).build()?;
    Ok(Door { client, grant })
}

/// Headers as Claude Code 2.1.330 sends them.
fn headers() -> [(&'static str, &'static str); 8] {
    [
        ("anthropic-version", "2023-06-01"),
        ("anthropic-beta", "claude-code-20250219,interleaved-thinking-2025-05-14"),
        ("content-type", "application/json"),
        ("user-agent", "claude-cli/2.1.330 (external, sdk-cli)"),
        ("x-app", "cli"),
        ("x-claude-code-session-id", "5f0e7a3c-8f3c-4f0e-9d55-0a8ad57f2f11"),
        ("x-stainless-retry-count", "0"),
        ("x-stainless-timeout", "600"),
    ]
}

fn body(kind: Call) -> String {
    let head = json!({
        "model": "claude-opus-5-5", "max_tokens": 64_000, "stream": true,
        "messages": [{"role": "user", "content": format!("[[scn:{}]] {}", kind.scenario(), "x".repeat(REQUEST_BYTES))}],
    });
    // Not as a serialiser would write it: it must arrive as it was sent.
    format!(" {head}\n")
}

/// What the model saw of a request, but for what tells one request from another.
fn seen(record: &Record) -> Value {
    let mut headers = record.headers.clone();
    headers.retain(|name, _| {
        !matches!(name.as_str(), "authorization" | "x-api-key" | "accept-encoding" | "host")
    });
    json!({
        "path": record.path, "body": record.body_sha256, "bytes": record.body_bytes, "headers": headers,
        "key": record.x_api_key, "token": record.authorization,
    })
}

/// A reply without the model's own ids.
fn without_ids(reply: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(reply);
    let mut kept = String::with_capacity(text.len());
    for (number, part) in text.split("\"msg_").enumerate() {
        kept.push_str(if number == 0 { part } else { part.split_once('"').map_or("", |(_, rest)| rest) });
    }
    kept.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_calls_than_agents_are_an_error_that_says_so() {
        assert_eq!(of_doors(5).unwrap(), 0);
        assert_eq!(of_doors(7).unwrap(), 2);
        let fewer = of_doors(4).unwrap_err().to_string();
        assert_eq!(fewer, "the server counts 4 calls, and 5 are the agents' own");
    }
}
