use std::path::PathBuf;

use caisson_domain::git::AllowList;
use caisson_domain::image::IMAGE_NAME_BYTES;

use super::super::request::CreateRunResources;
use super::*;
use crate::problem::Fault;

const URL: &str = "https://git.example.com/team/x.git";

fn workflow(block: &str) -> Workflow {
    let text = format!(
        "---\nname: fix\ndescription: fixes\nmodel: sonnet\nmaxTurns: 9\ncaisson: {block}\n---\nDo it.\n"
    );
    Workflow::parse(&text).unwrap()
}

fn config() -> ApiConfig {
    let allow =
        AllowList::new(&["https://git.example.com/team/*".to_owned()], vec![PathBuf::from("/srv/git")]);
    ApiConfig { allow: allow.unwrap(), ..ApiConfig::default() }
}

fn request() -> CreateRun {
    CreateRun { workflow: "fix".to_owned(), prompt: "Fix it.".to_owned(), ..CreateRun::default() }
}

fn with_repository(text: &str) -> CreateRun {
    CreateRun { repository: RepositoryChoice::Named(text.to_owned()), ..request() }
}

/// Field and code of every fault.
fn faults_under(request: &CreateRun, workflow: &Workflow, config: &ApiConfig) -> Vec<(String, String)> {
    let mut faults = Faults::default();
    specification(request, Some((workflow, 1)), config, &mut faults);
    let tell = |fault: Fault| (fault.field.unwrap_or_default(), fault.code);
    faults.into_items().into_iter().map(tell).collect()
}

fn faults(request: &CreateRun) -> Vec<(String, String)> {
    faults_under(request, &workflow("{environment: [CI]}"), &config())
}

fn one(field: &str, code: &str) -> Vec<(String, String)> {
    vec![(field.to_owned(), code.to_owned())]
}

fn accepted(request: &CreateRun, workflow: &Workflow, config: &ApiConfig) -> RunSpec {
    let mut faults = Faults::default();
    let spec = specification(request, Some((workflow, 1)), config, &mut faults);
    assert!(faults.is_empty(), "{faults:?}");
    spec.unwrap()
}

#[test]
fn a_prompt_is_taken_up_to_its_bound_and_not_when_it_is_blank() {
    let with = |prompt: &str| faults(&CreateRun { prompt: prompt.to_owned(), ..request() });
    assert_eq!(with(&"x".repeat(limits::PROMPT_BYTES)), []);
    assert_eq!(with(&"x".repeat(limits::PROMPT_BYTES + 1)), one("prompt", "prompt_too_long"));
    assert_eq!(with(""), one("prompt", "prompt_blank"));
    assert_eq!(with(" \n\t\u{2003}"), one("prompt", "prompt_blank"));
    assert_eq!(with("a\0b"), one("prompt", "prompt_invalid"));
}

#[test]
fn a_repository_must_be_one_and_be_allowed() {
    assert_eq!(faults(&with_repository(URL)), []);
    assert_eq!(faults(&with_repository("/srv/git/x")), []);
    for bad in [
        "",
        "x",
        "file:///etc",
        "git@git.example.com:team/x",
        "https://u:p@git.example.com/team/x",
        "/srv/../etc",
    ] {
        assert_eq!(faults(&with_repository(bad)), one("repository", "repository_invalid"), "{bad}");
    }
    for outside in ["/etc", "https://git.example.com/other/x"] {
        assert_eq!(
            faults(&with_repository(outside)),
            one("repository", "repository_not_allowed"),
            "{outside}"
        );
    }
}

#[test]
fn a_refused_repository_is_answered_with_the_way_to_allow_it() {
    let message = |text: &str| {
        let mut faults = Faults::default();
        specification(&with_repository(text), Some((&workflow("{}"), 1)), &config(), &mut faults);
        faults.into_items().remove(0).message
    };
    assert!(message("/etc").contains("--allow-repo DIR"));
    assert!(message("https://example.com/x").contains("`repositories` in the server's configuration"));
}

#[test]
fn the_default_repository_stands_in_only_for_silence() {
    let config = ApiConfig { default_repository: Some(URL.parse().unwrap()), ..config() };
    let flow = workflow("{}");
    assert_eq!(accepted(&request(), &flow, &config).repository.unwrap().to_string(), URL);
    let insisting = CreateRun { repository: RepositoryChoice::ServerDefault, ..request() };
    assert_eq!(accepted(&insisting, &flow, &config).repository.unwrap().to_string(), URL);
    assert_eq!(faults(&insisting), one("repository", "no_default_repository"));
    let empty = CreateRun { repository: RepositoryChoice::Empty, ..request() };
    assert_eq!(accepted(&empty, &flow, &config).repository, None);
    let other = accepted(&with_repository("/srv/git/x"), &flow, &config);
    assert_eq!(other.repository.unwrap().to_string(), "/srv/git/x");
    let outside = ApiConfig { default_repository: Some("/etc".parse().unwrap()), ..config };
    assert_eq!(faults_under(&request(), &flow, &outside), one("repository", "repository_not_allowed"));
}

#[test]
fn branches_follow_gits_rules_and_need_a_repository() {
    let long = "b".repeat(limits::BRANCH_BYTES + 1);
    for bad in ["a b", "a..b", "-x", "a\tb", "", &long] {
        let base = CreateRun { base: Some(bad.to_owned()), ..with_repository(URL) };
        assert_eq!(faults(&base), one("base", "branch_invalid"), "{bad}");
        let branch = CreateRun { branch: Some(bad.to_owned()), ..with_repository(URL) };
        assert_eq!(faults(&branch), one("branch", "branch_invalid"), "{bad}");
    }
    let longest = Some("b".repeat(limits::BRANCH_BYTES));
    assert_eq!(faults(&CreateRun { branch: longest.clone(), ..with_repository(URL) }), []);
    assert_eq!(
        faults(&CreateRun { branch: longest, ..request() }),
        one("branch", "branch_without_repository")
    );
    assert_eq!(
        faults(&CreateRun { base: Some("main".to_owned()), ..request() }),
        one("base", "branch_without_repository")
    );
    // A repository that cannot be used is the fault; that there is none then is not another one.
    let refused = CreateRun { base: Some("main".to_owned()), ..with_repository("/etc") };
    assert_eq!(faults(&refused), one("repository", "repository_not_allowed"));
}

#[test]
fn only_a_branch_that_the_workflow_trusts_steers_the_agent() {
    let flow = workflow("{trust: {branches: [release/*]}}");
    let based = |base: &str, anchor: Option<&str>| CreateRun {
        base: Some(base.to_owned()),
        anchor: anchor.map(str::to_owned),
        ..with_repository(URL)
    };
    let anchor = |request| accepted(&request, &flow, &config()).anchor.map(String::from);
    assert_eq!(anchor(based("pr/7", None)), None);
    assert_eq!(anchor(based("release/1", None)).as_deref(), Some("release/1"));
    assert_eq!(anchor(based("pr/7", Some("release/1"))).as_deref(), Some("release/1"));
    let refused = based("pr/7", Some("pr/7"));
    assert_eq!(faults_under(&refused, &flow, &config()), one("anchor", "anchor_not_trusted"));
    assert_eq!(faults(&based("release/1", Some("release/1"))), one("anchor", "anchor_not_trusted"));
    assert_eq!(faults(&based("x", Some("a b"))), one("anchor", "branch_invalid"));
    let nowhere = CreateRun { anchor: Some("release/1".to_owned()), ..request() };
    assert_eq!(faults(&nowhere), one("anchor", "branch_without_repository"));
}

#[test]
fn a_model_or_image_cannot_look_like_an_option_or_a_path() {
    let model = |text: &str| faults(&CreateRun { model: Some(text.to_owned()), ..request() });
    for good in ["sonnet", "claude-opus-4-1[1m]", "us.anthropic.x-v1:0", &"m".repeat(MODEL_BYTES)] {
        assert_eq!(model(good), [], "{good}");
    }
    for bad in ["", "-p", "--model", "a b", "a\nb", "ä", &"m".repeat(MODEL_BYTES + 1)] {
        assert_eq!(model(bad), one("model", "model_invalid"), "{bad}");
    }
    let image = |text: &str| faults(&CreateRun { image: Some(text.to_owned()), ..request() });
    let digest = format!("debian@sha256:{}", "0".repeat(64));
    for good in
        ["debian:bookworm-slim", "registry.example:5000/team/image:1", &digest, &"i".repeat(IMAGE_NAME_BYTES)]
    {
        assert_eq!(image(good), [], "{good}");
    }
    for bad in
        ["", "-x", "a b", "a//b", "/a", "a/", "../a", "a/../b", "a?b", &"i".repeat(IMAGE_NAME_BYTES + 1)]
    {
        assert_eq!(image(bad), one("image", "image_invalid"), "{bad}");
    }
}

#[test]
fn numbers_are_taken_at_their_bounds_and_refused_beyond() {
    type Put = fn(&mut CreateRun, u32);
    fn resources(request: &mut CreateRun) -> &mut CreateRunResources {
        request.resources.get_or_insert_default()
    }
    let timeout_s = limits::RUN_TIMEOUT_S_MIN..=limits::RUN_TIMEOUT_S_MAX;
    let cases: [(&str, RangeInclusive<u32>, Put); 9] = [
        ("max_turns", 1..=limits::MAX_TURNS_MAX, |request, value| request.max_turns = Some(value)),
        ("timeout_s", timeout_s, |request, value| request.timeout_s = Some(value)),
        ("budget_micro_usd", RUN_BUDGET_MICRO_USD, |request, value| request.budget_micro_usd = Some(value)),
        ("budget_soft_percent", SOFT_PERCENT, |request, value| request.budget_soft_percent = Some(value)),
        ("resources.memory_mib", MEMORY_MIB, |request, value| resources(request).memory_mib = Some(value)),
        ("resources.pids", PIDS, |request, value| resources(request).pids = Some(value)),
        ("resources.cpu_millis", CPU_MILLIS, |request, value| resources(request).cpu_millis = Some(value)),
        ("resources.tmp_mib", TMP_MIB, |request, value| resources(request).tmp_mib = Some(value)),
        ("resources.workspace_mib", WORKSPACE_MIB, |request, value| {
            resources(request).workspace_mib = Some(value);
        }),
    ];
    for (field, range, put) in cases {
        let with = |value: u32| {
            let mut changed = request();
            put(&mut changed, value);
            faults(&changed)
        };
        assert_eq!(with(*range.start()), [], "{field}");
        assert_eq!(with(*range.end()), [], "{field}");
        assert_eq!(with(range.start() - 1), one(field, "out_of_range"));
        assert_eq!(with(range.end() + 1), one(field, "out_of_range"));
    }
}

#[test]
fn an_environment_holds_only_allowed_names_and_short_values() {
    let with = |name: &str, value: String| {
        faults(&CreateRun { environment: BTreeMap::from([(name.to_owned(), value)]), ..request() })
    };
    assert_eq!(with("CI", "v".repeat(limits::ENVIRONMENT_VALUE_BYTES)), []);
    let long = "v".repeat(limits::ENVIRONMENT_VALUE_BYTES + 1);
    assert_eq!(with("CI", long), one("environment.CI", "environment_value_too_long"));
    assert_eq!(with("CI", "a\0".to_owned()), one("environment.CI", "environment_value_invalid"));
    assert_eq!(with("PATH", "x".to_owned()), one("environment.PATH", "environment_not_allowed"));
    let none = CreateRun { environment: BTreeMap::from([("CI".to_owned(), String::new())]), ..request() };
    let faults = faults_under(&none, &workflow("{}"), &config());
    assert_eq!(faults, one("environment.CI", "environment_not_allowed"));
}

#[test]
fn the_requests_values_win_and_the_workflows_fill_in() {
    let flow = workflow(
        "{image: debian, timeout_s: 60, budget_micro_usd: 5, budget_soft_percent: 60, resources: {memory_mib: 256, pids: 64, workspace_mib: 100}}",
    );
    let silent = accepted(&request(), &flow, &config());
    assert_eq!(silent.model.as_deref(), Some("sonnet"));
    assert_eq!(silent.max_turns, Some(9));
    assert_eq!(silent.image.as_deref(), Some("debian"));
    assert_eq!(silent.timeout_s, 60);
    assert_eq!((silent.budget_micro_usd, silent.budget_soft_percent), (Some(5), Some(60)));
    assert_eq!(
        silent.resources,
        Resources { memory_mib: 256, pids: 64, workspace_mib: Some(100), ..Resources::default() }
    );
    assert_eq!(silent.workflow, flow);
    let loud = CreateRun {
        model: Some("opus".to_owned()),
        max_turns: Some(1),
        image: Some("alpine".to_owned()),
        timeout_s: Some(3600),
        budget_micro_usd: Some(7),
        budget_soft_percent: Some(100),
        resources: Some(CreateRunResources { memory_mib: Some(512), ..CreateRunResources::default() }),
        ..request()
    };
    let loud = accepted(&loud, &flow, &config());
    let of_the_server = ApiConfig { budget_soft_percent: Some(70), ..config() };
    assert_eq!(accepted(&request(), &workflow("{}"), &of_the_server).budget_soft_percent, Some(70));
    assert_eq!(accepted(&request(), &flow, &of_the_server).budget_soft_percent, Some(60));
    assert_eq!(loud.model.as_deref(), Some("opus"));
    assert_eq!(loud.max_turns, Some(1));
    assert_eq!(loud.image.as_deref(), Some("alpine"));
    assert_eq!(loud.timeout_s, 3600);
    assert_eq!((loud.budget_micro_usd, loud.budget_soft_percent), (Some(7), Some(100)));
    assert_eq!(
        loud.resources,
        Resources { memory_mib: 512, pids: 64, workspace_mib: Some(100), ..Resources::default() }
    );
}
