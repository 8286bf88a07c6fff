use super::*;
use crate::environment_name::ENVIRONMENT_NAME_BYTES;

fn file(front: &str) -> String {
    format!("---\nname: x\ndescription: does x\n{front}---\n\nDo it.\n")
}

fn fault(front: &str) -> String {
    Workflow::parse(&file(front)).unwrap_err().to_string()
}

#[test]
fn a_short_file_has_the_defaults() {
    let workflow = Workflow::parse(&file("")).unwrap();
    assert_eq!(workflow.prompt, "Do it.");
    assert_eq!(workflow.permission_mode, PermissionMode::Default);
    assert_eq!(workflow.tools, None);
    assert_eq!(workflow.caisson, CaissonBlock::default());
}

#[test]
fn names_may_be_a_list_or_a_text_with_commas() {
    let text = Workflow::parse(&file("tools: Bash, Read\ndisallowedTools: [WebFetch]\n")).unwrap();
    assert_eq!(text.tools.unwrap(), ["Bash", "Read"]);
    assert_eq!(text.disallowed_tools, ["WebFetch"]);
}

#[test]
fn an_unknown_key_is_an_error_that_names_it() {
    assert!(fault("tool: Bash\n").contains("tool"));
    assert!(fault("caisson:\n  imge: x\n").contains("imge"));
}

#[test]
fn a_stored_workflow_tolerates_fields_of_another_version() {
    let workflow = Workflow::parse(&file("caisson: {timeout_s: 60, resources: {pids: 64}}\n")).unwrap();
    let mut stored = serde_json::to_value(&workflow).unwrap();
    for part in [&[][..], &["caisson"], &["caisson", "resources"]] {
        let document = part.iter().fold(&mut stored, |value, key| &mut value[*key]);
        document["of_another_version"] = 1.into();
    }
    assert_eq!(serde_json::from_value::<Workflow>(stored).unwrap(), workflow);
    assert!(fault("caisson: {resources: {pidz: 64}}\n").contains("pidz"), "a file is read strictly");
}

#[test]
fn values_are_checked_at_their_bounds() {
    let seconds = |value: u32| format!("caisson: {{timeout_s: {value}}}\n");
    assert!(Workflow::parse(&file(&seconds(limits::RUN_TIMEOUT_S_MIN))).is_ok());
    assert!(Workflow::parse(&file(&seconds(limits::RUN_TIMEOUT_S_MAX))).is_ok());
    assert!(fault(&seconds(limits::RUN_TIMEOUT_S_MIN - 1)).contains("timeout_s"));
    assert!(fault(&seconds(limits::RUN_TIMEOUT_S_MAX + 1)).contains("timeout_s"));
    let budget = |value: u32| format!("caisson: {{budget_micro_usd: {value}}}\n");
    let (least, most) = (*RUN_BUDGET_MICRO_USD.start(), *RUN_BUDGET_MICRO_USD.end());
    assert_eq!(Workflow::parse(&file(&budget(least))).unwrap().caisson.budget_micro_usd, Some(least));
    assert!(Workflow::parse(&file(&budget(most))).is_ok());
    assert!(fault(&budget(0)).contains("budget_micro_usd"));
    assert!(fault(&budget(most + 1)).contains("budget_micro_usd"));
    let soft = |value: u32| format!("caisson: {{budget_soft_percent: {value}}}\n");
    for value in [1, 100] {
        assert_eq!(Workflow::parse(&file(&soft(value))).unwrap().caisson.budget_soft_percent, Some(value));
    }
    for value in [0, 101] {
        assert!(fault(&soft(value)).contains("budget_soft_percent"), "{value}");
    }
    for (key, range) in [
        ("memory_mib", MEMORY_MIB),
        ("pids", PIDS),
        ("cpu_millis", CPU_MILLIS),
        ("tmp_mib", TMP_MIB),
        ("workspace_mib", WORKSPACE_MIB),
    ] {
        let front = |value: u32| format!("caisson: {{resources: {{{key}: {value}}}}}\n");
        assert!(Workflow::parse(&file(&front(*range.start()))).is_ok());
        assert!(Workflow::parse(&file(&front(*range.end()))).is_ok());
        assert!(fault(&front(range.start() - 1)).contains(key));
        assert!(fault(&front(range.end() + 1)).contains(key));
    }
    assert!(Workflow::parse(&file(&format!("maxTurns: {}\n", limits::MAX_TURNS_MAX))).is_ok());
    assert!(fault(&format!("maxTurns: {}\n", limits::MAX_TURNS_MAX + 1)).contains("maxTurns"));
    assert!(fault("maxTurns: 0\n").contains("maxTurns"));
}

#[test]
fn a_publish_policy_that_is_not_built_is_an_error_with_the_choices() {
    for policy in ["change_request", "review"] {
        let message = fault(&format!("caisson: {{publish: {policy}}}\n"));
        assert!(message.contains(policy) && message.contains("\"branch\""), "{message}");
    }
    assert!(Workflow::parse(&file("caisson: {publish: none}\n")).is_ok());
}

#[test]
fn only_policies_that_end_with_a_branch_push() {
    let pushing: Vec<Publish> = [Publish::None, Publish::Branch, Publish::ChangeRequest, Publish::Review]
        .into_iter()
        .filter(|policy| policy.pushes())
        .collect();
    assert_eq!(pushing, [Publish::Branch, Publish::ChangeRequest]);
}

#[test]
fn reserved_environment_names_are_refused() {
    for name in [
        "PATH",
        "BUN_OPTIONS",
        "CLAUDECODE",
        "https_proxy",
        "ANTHROPIC_BASE_URL",
        "CLAUDE_X",
        "CAISSON_CONTROL_GRANT",
        "LD_PRELOAD",
        "GIT_DIR",
    ] {
        assert!(fault(&format!("caisson: {{environment: [{name}]}}\n")).contains("reserved"), "{name}");
    }
    assert!(fault("caisson: {environment: [\"A B\"]}\n").contains("not an environment"));
    assert!(Workflow::parse(&file("caisson: {environment: [CI, NODE_ENV]}\n")).is_ok());
    assert!(check_environment_name(&"A".repeat(ENVIRONMENT_NAME_BYTES)).is_ok());
    assert!(check_environment_name(&"A".repeat(ENVIRONMENT_NAME_BYTES + 1)).is_err());
}

#[test]
fn mcp_servers_are_programs_and_urls() {
    assert!(fault("mcpServers: {x: {args: [a]}}\n").contains("\"x\": it has no command"));
    assert!(fault("mcpServers: {x: {type: sse, url: \"http://a\"}}\n").contains("type: http"));
    assert!(Workflow::parse(&file("mcpServers: {x: {command: serve, required: true}}\n")).is_ok());
    let http =
        Workflow::parse(&file("mcpServers: {x: {type: http, url: \"https://a.example/mcp\"}}\n")).unwrap();
    let read = mcp::Server::read(&http.mcp_servers["x"]).unwrap();
    assert!(matches!(read.reach, mcp::Reach::Http(url) if url.as_str() == "https://a.example/mcp"));
}

#[test]
fn a_file_without_front_matter_or_end_is_refused() {
    assert!(matches!(Workflow::parse("Do it."), Err(WorkflowError::NoFrontMatter)));
    assert!(matches!(Workflow::parse("---\nname: x\n"), Err(WorkflowError::NoFrontMatter)));
    let name = Workflow::parse("---\nname: A\ndescription: y\n---\n").unwrap_err();
    assert!(matches!(name.without_line(), WorkflowError::Name(_)));
}

#[test]
fn a_file_is_read_up_to_its_bound() {
    let base = file("");
    let fit = format!("{base}{}", "x".repeat(limits::WORKFLOW_BYTES - base.len()));
    assert!(Workflow::parse(&fit).is_ok());
    assert!(matches!(Workflow::parse(&format!("{fit}x")), Err(WorkflowError::TooLong)));
}

#[test]
fn a_commit_type_is_one_lower_case_word() {
    assert_eq!(Workflow::parse(&file("caisson: {commit_type: fix}\n")).unwrap().caisson.commit_type, "fix");
    for bad in ["\"\"", "Fix", "\"fix:\"", &"a".repeat(21)] {
        assert!(fault(&format!("caisson: {{commit_type: {bad}}}\n")).contains("commit_type"), "{bad}");
    }
}

#[test]
fn tools_are_names_and_rules_within_their_bounds() {
    assert!(Workflow::parse(&file("tools: Bash\ndisallowedTools: [\"Bash(rm *)\"]\n")).is_ok());
    assert!(fault("tools: [\"Bash(ls)\"]\n").contains("tools"));
    assert!(fault("disallowedTools: [\"Bash(a)b, Edit\"]\n").contains("disallowedTools"));
    let list = |count: usize| format!("tools: [{}]\n", vec!["A"; count].join(", "));
    assert!(Workflow::parse(&file(&list(tools::TOOLS))).is_ok());
    assert!(fault(&list(tools::TOOLS + 1)).contains("256"));
    let name = |length: usize| format!("tools: [{}]\n", "A".repeat(length));
    assert!(Workflow::parse(&file(&name(tools::TOOL_BYTES))).is_ok());
    assert!(fault(&name(tools::TOOL_BYTES + 1)).contains("tools"));
}

#[test]
fn an_mcp_configuration_is_bounded_as_json() {
    let mut workflow = Workflow::parse(&file("mcpServers: {x: {command: serve}}\n")).unwrap();
    let bytes = serde_json::to_string(&workflow.mcp_servers).unwrap().len();
    workflow.mcp_servers["x"]["command"] = "c".repeat(limits::MCP_BYTES - bytes + "serve".len()).into();
    assert!(workflow.validate().is_ok());
    workflow.mcp_servers["x"]["command"] = "c".repeat(limits::MCP_BYTES - bytes + "serve".len() + 1).into();
    assert!(workflow.validate().is_err());
}

#[test]
fn an_image_is_named_as_engines_name_them() {
    assert!(Workflow::parse(&file("caisson: {image: \"debian:bookworm-slim\"}\n")).is_ok());
    assert!(fault("caisson: {image: \"Not An Image\"}\n").contains("caisson.image"));
}

#[test]
fn egress_is_a_list_of_presets_and_rules() {
    let with = |egress: &str| Workflow::parse(&file(&format!("caisson:\n  egress: {egress}\n")));
    let egress = |text: &str| with(text).unwrap().caisson.egress;
    assert_eq!(egress("[npm, \"*.example.com:443\", \"http://mirror.example/#GET\"]").unwrap().len(), 3);
    assert_eq!(egress("[]"), Some(Vec::new()));
    assert_eq!(Workflow::parse(&file("")).unwrap().caisson.egress, None);
    assert_eq!(egress("[\"https://example.com/team/#GET\"]").unwrap().len(), 1);
    let error = with("[\"ftp://example.com/\"]").unwrap_err().to_string();
    assert!(error.contains("caisson.egress") && error.contains("host:port"), "{error}");
    let many = vec!["example.com"; crate::egress::RULES + 1].join(", ");
    assert!(with(&format!("[{many}]")).unwrap_err().to_string().contains("256 entries"));
}

#[test]
fn a_workflow_trusts_nothing_but_what_it_names() {
    let block = |text: &str| {
        let text = format!("---\nname: x\ndescription: y\ncaisson: {text}\n---\n");
        Workflow::parse(&text).map(|workflow| workflow.caisson)
    };
    assert_eq!(block("{}").unwrap().trust, TrustBlock::default());
    let opted = block("{trust: {branches: [release/*], settings: true}}").unwrap().trust;
    assert_eq!(
        (opted.instructions, opted.settings, opted.branches),
        (true, true, vec!["release/*".to_owned()])
    );
    assert!(!block("{trust: {instructions: false}}").unwrap().trust.instructions);
    assert!(!opted.publish && block("{trust: {publish: true}}").unwrap().trust.publish);
    assert!(block("{publish: none, trust: {branches: [caisson/*]}}").is_ok());
    for bad in [
        "{trust: {hooks: true}}",
        "{trust: {branches: ['*']}}",
        "{trust: true}",
        "{trust: {branches: [caisson/x/*]}}",
    ] {
        assert!(block(bad).is_err(), "{bad}");
    }
    // One that another version wrote, without the block.
    assert_eq!(serde_json::from_str::<CaissonBlock>("{}").unwrap().trust, TrustBlock::default());
}

#[test]
fn forbidden_paths_are_patterns_with_a_bound() {
    let parse = |patterns: &str| {
        let text = format!("---\nname: x\ndescription: y\ncaisson: {{forbidden_paths: {patterns}}}\n---\n");
        Workflow::parse(&text).map(|workflow| workflow.caisson.forbidden_paths)
    };
    assert_eq!(parse("['.github/**', '*.pem']").unwrap(), [".github/**", "*.pem"]);
    for bad in ["['a//b']", "['']", "['a/x**']"] {
        assert!(parse(bad).unwrap_err().to_string().contains("caisson.forbidden_paths"), "{bad}");
    }
    let many = |count| format!("[{}]", vec!["a"; count].join(","));
    assert!(parse(&many(crate::globs::PATTERNS)).is_ok());
    assert!(parse(&many(crate::globs::PATTERNS + 1)).is_err());
}

/// The workflows that ship.
const SHIPPED: [&str; 3] = [
    include_str!("../../../workflows/bug-fixer.md"),
    include_str!("../../../workflows/code-task.md"),
    include_str!("../../../workflows/pr-reviewer.md"),
];

#[test]
fn the_workflows_that_ship_are_short_and_take_what_they_read_for_data() {
    let [fixer, task, reviewer] = SHIPPED.map(|text| Workflow::parse(text).unwrap());
    for workflow in [&fixer, &task, &reviewer] {
        assert!(workflow.prompt.len() < 3 * 1024, "{} has {} bytes", workflow.name, workflow.prompt.len());
        assert!(workflow.prompt.contains("data about"), "{}", workflow.name);
        assert!(workflow.prompt.contains("Nobody can answer questions"), "{}", workflow.name);
        assert!(workflow.disallowed_tools.contains(&"WebFetch".to_owned()), "{}", workflow.name);
    }
    assert_eq!(task.caisson.checks, [CheckName::Format, CheckName::Lint, CheckName::Test]);
    assert_eq!((fixer.caisson.publish, task.caisson.publish), (Publish::Branch, Publish::Branch));
    assert_eq!(
        (reviewer.caisson.workspace, reviewer.caisson.publish),
        (WorkspaceAccess::ReadOnly, Publish::None)
    );
    for tool in ["Write", "Edit", "NotebookEdit"] {
        assert!(reviewer.disallowed_tools.contains(&tool.to_owned()), "{tool}");
    }
    let schema = Schema::read(reviewer.caisson.output_schema.as_ref().unwrap()).unwrap();
    let review = |verdict: &str, line: Value| {
        let finding = serde_json::json!({
            "file": "a.py", "line": line, "severity": "high", "title": "t", "suggestion": "s",
        });
        serde_json::json!({"verdict": verdict, "summary": "s", "findings": [finding]})
    };
    for verdict in ["APPROVE", "REQUEST_CHANGES", "COMMENT"] {
        assert_eq!(schema.faults(&review(verdict, Value::Null)), Vec::<String>::new());
    }
    assert_eq!(schema.faults(&review("MERGE", 0.into())).len(), 2);
}

#[test]
fn a_workflow_that_only_reads_publishes_and_checks_nothing() {
    let read_only = |more: &str| format!("caisson: {{workspace: read-only, {more}}}\n");
    assert!(Workflow::parse(&file(&read_only("publish: none"))).is_ok());
    assert!(fault(&read_only("publish: branch")).contains("publish: none"));
    assert!(fault(&read_only("egress: []")).contains("caisson.publish"), "the default publishes");
    assert!(fault(&read_only("publish: none, checks: [test]")).contains("caisson.checks"));
    assert!(fault("caisson: {workspace: sealed}\n").contains("front matter"));
    assert!(fault("caisson: {output_schema: {type: array}}\n").contains("caisson.output_schema"));
    assert!(fault("caisson: {parameters: {A: {type: string}}}\n").contains("caisson.parameters"));
    assert!(fault("caisson: {checks: [build]}\n").contains("front matter"));
}

#[test]
fn a_front_matter_that_grows_when_it_is_read_is_refused() {
    let levels = (1..30).map(|n| format!("a{n}: &a{n} [*a{0}, *a{0}, *a{0}, *a{0}, *a{0}]", n - 1));
    let bomb = [vec!["a0: &a0 [x]".to_owned()], levels.collect()].concat().join("\n") + "\n";
    assert!(Workflow::parse(&file(&bomb)).is_err());
    let deep = format!("tools: {}x{}\n", "[".repeat(YAML_DEPTH + 1), "]".repeat(YAML_DEPTH + 1));
    assert!(fault(&deep).contains("front matter"));
    let wide = format!("tools: [{}]\n", vec!["a"; YAML_NODES + 1].join(","));
    assert!(fault(&wide).contains("front matter"));
}

#[test]
fn rules_for_what_needs_no_asking_are_refused_where_they_bind_nothing() {
    let of = |mode: &str| {
        Workflow::parse(&format!(
            "---\nname: a\ndescription: d\npermissionMode: {mode}\nallowedTools: [\"Bash(make *)\", mcp__git__status]\n---\nx\n"
        ))
    };
    for mode in ["default", "acceptEdits", "dontAsk"] {
        assert_eq!(of(mode).unwrap().allowed_tools, ["Bash(make *)", "mcp__git__status"], "{mode}");
    }
    for mode in ["bypassPermissions", "plan"] {
        let told = of(mode).unwrap_err().to_string();
        assert!(told.contains("allowedTools") && told.contains(mode) && told.contains("dontAsk"), "{told}");
    }
    let odd = "---\nname: a\ndescription: d\nallowedTools: [\"Bash(a) Edit(b)\"]\n---\nx\n";
    assert!(Workflow::parse(odd).unwrap_err().to_string().contains("is not a tool"));
}

#[test]
fn checks_that_must_pass_have_to_be_named() {
    let of = |block: &str| {
        let text = format!("---\nname: a\ndescription: d\ncaisson: {{{block}}}\n---\nx\n");
        Workflow::parse(&text).map(|workflow| workflow.caisson.checks_must_pass)
    };
    assert!(of("checks: [test], checks_must_pass: true").unwrap());
    assert!(!of("checks: [test]").unwrap() && !of("checks_must_pass: false").unwrap());
    let told = of("checks_must_pass: true").unwrap_err().to_string();
    assert!(told.contains("caisson.checks_must_pass") && told.contains("checks: [test]"), "{told}");
}

#[test]
fn turns_to_mend_what_checks_find_are_bounded() {
    let of = |turns: &str| {
        let text = format!(
            "---\nname: a\ndescription: d\ncaisson: {{checks: [test], check_turns: {turns}}}\n---\nx\n"
        );
        Workflow::parse(&text).map(|workflow| workflow.caisson.check_turns)
    };
    assert_eq!((of("0").unwrap(), of("5").unwrap()), (Some(0), Some(5)));
    assert!(of("6").unwrap_err().to_string().contains("from 0 to 5"));
}
