use super::*;

fn uuid() -> Uuid {
    Uuid::parse("0192f0c1-2345-7abc-8def-0123456789ab").unwrap()
}

fn launch() -> Launch {
    Launch::new(SessionMode::New(uuid()))
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn whole() -> Launch {
    Launch {
        session: SessionMode::Resume(uuid()),
        model: Some("--version".to_owned()),
        permission_mode: PermissionMode::Default,
        permission_prompts: PermissionPrompts::Driver,
        tools: Some(texts(&["Bash", "Edit", "mcp__db__query"])),
        allowed_tools: texts(&["Edit((group)/**)", "Bash(git log:*)"]),
        disallowed_tools: texts(&["WebFetch", "Bash(echo a, b)", "mcp__*"]),
        max_turns: Some(40),
        append_system_prompt: Some("--dangerously-skip-permissions\nSecond line.".to_owned()),
        mcp_config: Some("{\"mcpServers\":{}}".to_owned()),
        json_schema: Some(serde_json::json!({"type": "object"})),
        partial_messages: false,
        settings: Some(serde_json::json!({"disableAllHooks": true})),
        setting_sources: vec![SettingSource::User, SettingSource::Project, SettingSource::Local],
    }
}

#[test]
fn a_plain_launch_reads_no_settings_and_asks_nobody() {
    insta::assert_debug_snapshot!("plain_launch", launch().argv().unwrap());
}

#[test]
fn a_launch_with_everything_keeps_each_value_with_its_flag() {
    let argv = whole().argv().unwrap();
    assert!(argv.iter().all(|argument| argument.starts_with('-')), "{argv:?}");
    insta::assert_debug_snapshot!("whole_launch", argv);
}

#[test]
fn no_tools_is_not_the_default_set() {
    let launch = Launch { tools: Some(Vec::new()), ..launch() };
    assert!(launch.argv().unwrap().contains(&"--tools=".to_owned()));
}

#[test]
fn permission_modes_have_the_names_of_settings_and_of_the_command_line() {
    for (name, argument) in [
        ("default", "manual"),
        ("manual", "manual"),
        ("acceptEdits", "acceptEdits"),
        ("dontAsk", "dontAsk"),
        ("bypassPermissions", "bypassPermissions"),
        ("plan", "plan"),
    ] {
        assert_eq!(PermissionMode::parse(name).unwrap().as_argument(), argument);
    }
    assert_eq!(PermissionMode::parse("Plan"), None);
}

#[test]
fn a_model_is_one_printable_word() {
    let model = |model: &str| Launch { model: Some(model.to_owned()), ..launch() }.argv().map(drop);
    for bad in ["", "a b", "a\n", "modèle", "a\0"] {
        assert_eq!(model(bad), Err(LaunchError::Model), "{bad:?}");
    }
    assert_eq!(model("claude-opus-5-5[1m]"), Ok(()));
    assert_eq!(model(&"m".repeat(MODEL_BYTES_MAX)), Ok(()));
    assert_eq!(model(&"m".repeat(MODEL_BYTES_MAX + 1)), Err(LaunchError::Model));
}

#[test]
fn a_rule_is_one_rule() {
    for good in
        ["Edit", "Bash(git log:*)", "Bash(a, b)", "Edit((group)/**)", "mcp__db", "mcp__db__*", "Read(.env)"]
    {
        assert!(is_rule(good), "{good}");
    }
    for bad in [
        "",
        "-Edit",
        "Edit Bash",
        "Edit,Bash",
        "Edit\nBash",
        "Bash(a",
        "Bash)",
        "Bash()",
        "Bash(a)b, Edit(x)",
        "Bash(a(b) Edit(x)",
        "Bash(a(b)c) Edit(x)",
        "Bash(a),Edit(x)",
        "Bash(a) ",
        "Bash(a\nb)",
        "Bash(a\0b)",
        "Bash (a)",
        "(a)",
    ] {
        assert!(!is_rule(bad), "{bad}");
        for (flag, launch) in [
            (ALLOWED_TOOLS, Launch { allowed_tools: texts(&["Edit", bad]), ..launch() }),
            (DISALLOWED_TOOLS, Launch { disallowed_tools: texts(&[bad]), ..launch() }),
        ] {
            assert_eq!(launch.argv(), Err(LaunchError::Tool { flag, value: bad.to_owned() }));
        }
    }
}

#[test]
fn a_tool_is_a_bare_name() {
    for bad in ["", "default", "Bash,Edit", "Bash Edit", "Bash(x)", "-Bash", "*"] {
        let launch = Launch { tools: Some(texts(&[bad])), ..launch() };
        assert_eq!(launch.argv(), Err(LaunchError::Tool { flag: TOOLS, value: bad.to_owned() }));
    }
}

#[test]
fn lists_of_tools_end() {
    let rules = |count| Launch { allowed_tools: vec!["Edit".to_owned(); count], ..launch() };
    assert!(rules(TOOLS_MAX).argv().is_ok());
    let error = LaunchError::TooManyTools { flag: ALLOWED_TOOLS, count: TOOLS_MAX + 1 };
    assert_eq!(rules(TOOLS_MAX + 1).argv(), Err(error));

    let rule = |bytes: usize| Launch { allowed_tools: vec!["E".repeat(bytes)], ..launch() };
    assert!(rule(TOOL_BYTES_MAX).argv().is_ok());
    let error = LaunchError::Tool { flag: ALLOWED_TOOLS, value: "E".repeat(TOOL_BYTES_MAX) };
    assert_eq!(rule(TOOL_BYTES_MAX + 1).argv(), Err(error));
}

#[test]
fn turns_are_counted_from_one() {
    let turns = |turns| Launch { max_turns: Some(turns), ..launch() }.argv();
    assert_eq!(turns(0), Err(LaunchError::ZeroTurns));
    assert!(turns(1).unwrap().contains(&"--max-turns=1".to_owned()));
}

#[test]
fn long_arguments_end_before_the_system_refuses_them() {
    let prompt = |text: String| Launch { append_system_prompt: Some(text), ..launch() }.argv().map(drop);
    assert_eq!(prompt("x".repeat(ARGUMENT_BYTES_MAX)), Ok(()));
    let bytes = ARGUMENT_BYTES_MAX + 1;
    let error = LaunchError::TooLong { flag: APPEND_SYSTEM_PROMPT, bytes };
    assert_eq!(prompt("x".repeat(bytes)), Err(error));
    assert_eq!(prompt("a\0b".to_owned()), Err(LaunchError::Nul { flag: APPEND_SYSTEM_PROMPT }));

    let config = |text: String| Launch { mcp_config: Some(text), ..launch() }.argv().map(drop);
    let error = LaunchError::TooLong { flag: MCP_CONFIG, bytes };
    assert_eq!(config(" ".repeat(bytes)), Err(error));
}

#[test]
fn an_mcp_configuration_is_never_a_file_name() {
    let config = |text: &str| Launch { mcp_config: Some(text.to_owned()), ..launch() }.argv().map(drop);
    assert_eq!(config(" {\"mcpServers\":{\"a\":{\"command\":\"x\"}}}"), Ok(()));
    for bad in ["", "servers.json", "{}", "[]", "{\"mcpServers\":[]}", "{\"mcpServers\":{}", "\"mcpServers\""]
    {
        assert_eq!(config(bad), Err(LaunchError::McpConfig), "{bad}");
    }
}

#[test]
fn errors_say_which_flag() {
    let errors = [
        LaunchError::Model,
        LaunchError::Tool { flag: ALLOWED_TOOLS, value: "a\nb".to_owned() },
        LaunchError::TooManyTools { flag: TOOLS, count: 300 },
        LaunchError::ZeroTurns,
        LaunchError::TooLong { flag: MCP_CONFIG, bytes: 200_000 },
        LaunchError::Nul { flag: APPEND_SYSTEM_PROMPT },
        LaunchError::McpConfig,
    ];
    let sentences: Vec<String> = errors.iter().map(LaunchError::to_string).collect();
    insta::assert_debug_snapshot!("launch_errors", sentences);
}
