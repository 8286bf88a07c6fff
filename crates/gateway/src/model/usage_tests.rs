use super::*;

/// What a reply has come to that says these, one after the other.
fn of(usages: &[&str]) -> Reading {
    let mut reading = Reading::default();
    for usage in usages {
        take(&mut reading, serde_json::from_str(usage).unwrap());
    }
    reading
}

fn counts(usages: &[&str]) -> Option<[i64; 5]> {
    of(usages).tokens.map(flat)
}

fn flat(tokens: TokenCounts) -> [i64; 5] {
    [tokens.input, tokens.output, tokens.cache_read, tokens.cache_write_5m, tokens.cache_write_1h]
}

#[test]
fn odd_counts_are_survived() {
    for none in ["null", "7", "[]", r#""x""#] {
        assert_eq!(of(&[none]), Reading::default(), "{none}");
    }
    let odd = r#"{"input_tokens":-4,"output_tokens":"x","cache_read_input_tokens":1.5,"cache_creation":7}"#;
    assert_eq!(counts(&[odd]), Some([0; 5]));
    assert_eq!(counts(&[r#"{"input_tokens":3,"output_tokens":4}"#, odd]), Some([0, 4, 0, 0, 0]));
}

#[test]
fn what_the_cache_was_written_for_is_told_by_the_split_and_kept_when_the_sum_comes_again() {
    let split = r#"{"cache_creation":{"ephemeral_1h_input_tokens":8}}"#;
    assert_eq!(counts(&[split]), Some([0, 0, 0, 0, 8]));
    let both = r#"{"cache_creation_input_tokens":10,"cache_creation":{"ephemeral_1h_input_tokens":8}}"#;
    assert_eq!(counts(&[both]), Some([0, 0, 0, 2, 8]));
    // As the end of a streamed reply has it.
    let sum = |sum: i64| format!(r#"{{"cache_creation_input_tokens":{sum},"output_tokens":1}}"#);
    assert_eq!(counts(&[both, &sum(10)]), Some([0, 1, 0, 2, 8]));
    assert_eq!(counts(&[both, &sum(13)]), Some([0, 1, 0, 5, 8]));
    assert_eq!(counts(&[&sum(10)]), Some([0, 1, 0, 10, 0]));
    let minutes = r#"{"cache_creation_input_tokens":10,"cache_creation":{"ephemeral_5m_input_tokens":10}}"#;
    assert_eq!(counts(&[both, minutes]), Some([0, 0, 0, 10, 0]), "a whole split is told anew");
}

#[test]
fn tools_that_the_model_api_runs_itself_are_noticed() {
    let unpriced = |tools: &str| of(&[&format!(r#"{{"server_tool_use":{tools}}}"#)]).unpriced;
    for used in [r#"{"web_search_requests":1}"#, r#"{"web_search_requests":0,"later_requests":2}"#] {
        assert!(unpriced(used), "{used}");
    }
    for unused in ["null", "{}", r#"{"web_search_requests":0}"#, r#"{"web_search_requests":"x"}"#, "7"] {
        assert!(!unpriced(unused), "{unused}");
    }
    let later = [r#"{"server_tool_use":{"web_search_requests":3}}"#, r#"{"output_tokens":1}"#];
    assert!(of(&later).unpriced, "once is enough");
}

#[test]
fn another_speed_or_place_is_noticed() {
    for (member, unpriced) in [
        (r#""speed":"standard""#, false),
        (r#""speed":null"#, false),
        (r#""speed":"fast""#, true),
        (r#""speed":"of tomorrow""#, true),
        (r#""inference_geo":"global""#, false),
        (r#""inference_geo":"not_available""#, false),
        (r#""inference_geo":null"#, false),
        (r#""inference_geo":"us""#, true),
        (r#""inference_geo":["us"]"#, true),
        (r#""service_tier":"standard""#, false),
    ] {
        assert_eq!(of(&[&format!("{{{member}}}")]).unpriced, unpriced, "{member}");
        let within = format!(r#"{{"iterations":[{{"type":"message",{member}}}]}}"#);
        assert_eq!(of(&[&within]).unpriced, unpriced, "{within}");
    }
}

#[test]
fn passes_are_kept_one_by_one_and_those_told_last_count() {
    let first = r#"{"input_tokens":5,"iterations":[{"type":"message","input_tokens":5}]}"#;
    let last = r#"{"output_tokens":9,"iterations":[
        {"type":"compaction","input_tokens":180,"output_tokens":35,"cache_read_input_tokens":7,"model":null},
        {"type":"advisor_message","model":"claude-x","output_tokens":2,"cache_creation_input_tokens":3}]}"#;
    let reading = of(&[first, last]);
    let parts: Vec<_> = reading.parts.iter().map(|part| (part.model.as_deref(), flat(part.tokens))).collect();
    assert_eq!(parts, [(None, [180, 35, 7, 0, 0]), (Some("claude-x"), [0, 2, 0, 3, 0])]);
    assert!(!reading.unpriced);
    for nothing in [r#"{"iterations":null}"#, r#"{"iterations":[]}"#, "{}"] {
        let reading = of(&[first, nothing]);
        assert_eq!((reading.parts.len(), reading.unpriced), (1, false), "{nothing}");
    }
}

#[test]
fn passes_that_are_not_understood_make_an_estimate() {
    for odd in [
        r#"[{"type":"of_tomorrow","input_tokens":1}]"#,
        r#"[{"type":"fallback_message","input_tokens":1}]"#,
        r#"[{"input_tokens":1}]"#,
        r#"[{"type":7}]"#,
        "[7]",
        "7",
        "{}",
    ] {
        assert!(of(&[&format!(r#"{{"iterations":{odd}}}"#)]).unpriced, "{odd}");
    }
    assert_eq!(of(&[r#"{"iterations":[{"type":"new","input_tokens":4}]}"#]).parts[0].tokens.input, 4);
}

#[test]
fn so_many_passes_are_kept_and_the_others_are_added_up_without_a_model() {
    let many = |passes: usize| {
        let pass = r#"{"type":"message","model":"claude-x","input_tokens":1}"#;
        of(&[&format!(r#"{{"iterations":[{}]}}"#, vec![pass; passes].join(","))])
    };
    let fits = many(USAGE_PARTS);
    assert_eq!((fits.parts.len(), fits.unpriced), (USAGE_PARTS, false));
    let more = many(USAGE_PARTS + 2);
    assert_eq!((more.parts.len(), more.unpriced), (USAGE_PARTS, true));
    let last = &more.parts[USAGE_PARTS - 1];
    assert_eq!((last.model.as_deref(), last.tokens.input), (Some(""), 3));
}
