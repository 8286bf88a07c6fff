use super::super::ask::peek;
use super::*;

const OPUS: &str = "claude-opus-5-5";

fn tokens(input: i64, output: i64) -> TokenCounts {
    TokenCounts { input, output, ..TokenCounts::default() }
}

fn part(model: Option<&str>, tokens: TokenCounts) -> Part {
    Part { model: model.map(str::to_owned), tokens }
}

fn exact(top: TokenCounts, parts: Vec<Part>) -> Reading {
    Reading { model: Some(OPUS.to_owned()), tokens: Some(top), parts, exact: true, ..Reading::default() }
}

fn ask() -> Ask {
    peek(br#"{"model":"claude-opus-5-5","stream":true}"#)
}

/// Tokens, cost and whether it is an estimate.
fn last(reading: &Reading, ask: &Ask) -> (TokenCounts, i64, bool) {
    let bill = reading.last_bill(ask, &PriceTable::shipped());
    (bill.tokens, bill.cost_micro_usd, bill.estimated)
}

fn cost(model: &str, tokens: TokenCounts) -> i64 {
    PriceTable::shipped().cost_micro_usd(model, &tokens)
}

#[test]
fn passes_that_the_top_level_leaves_out_are_paid_for() {
    // The example of the Messages API's documentation of compaction.
    let (message, compaction) = (tokens(23_000, 1_000), tokens(180_000, 3_500));
    let reading = exact(message, vec![part(None, compaction), part(None, message)]);
    let all = tokens(203_000, 4_500);
    assert_eq!(last(&reading, &ask()), (all, cost(OPUS, all), false));
    // Where only that is told which is left out, or the top level has more, nothing is lost.
    let top = tokens(23_000, 9_000);
    let reading = exact(top, vec![part(None, compaction)]);
    let all = tokens(180_000, 9_000);
    assert_eq!(last(&reading, &ask()), (all, cost(OPUS, all), false));
    assert_eq!(last(&exact(message, Vec::new()), &ask()), (message, cost(OPUS, message), false));
    assert_eq!(
        last(&exact(message, vec![part(None, message)]), &ask()),
        (message, cost(OPUS, message), false)
    );
}

#[test]
fn each_pass_is_priced_by_its_own_model_and_by_its_own_length() {
    let haiku = "claude-haiku-5-5";
    let advice = tokens(1_000, 1_000);
    let reading =
        exact(tokens(500, 10), vec![part(None, tokens(500, 10)), part(Some("claude-fable-5-2"), advice)]);
    let own = cost(OPUS, tokens(500, 10)) + cost("claude-fable-5-2", advice);
    assert_eq!(last(&reading, &ask()), (tokens(1_500, 1_010), own, false));
    // Together they would be above the length from which this model costs five times as much.
    let pass = tokens(60_000, 0);
    let passes = vec![part(Some(haiku), pass), part(Some(haiku), pass)];
    let (_, counted, _) = last(&exact(TokenCounts::default(), passes), &ask());
    assert_eq!(counted, 2 * cost(haiku, pass));
    assert!(counted < cost(haiku, tokens(120_000, 0)));
}

#[test]
fn what_was_cached_for_an_hour_is_so_also_where_a_pass_does_not_say_it() {
    let top = TokenCounts { cache_write_5m: 10, cache_write_1h: 20, ..TokenCounts::default() };
    let unsplit = |written| part(None, TokenCounts { cache_write_5m: written, ..TokenCounts::default() });
    let reading = exact(top, vec![unsplit(12), unsplit(18)]);
    assert_eq!(last(&reading, &ask()), (top, cost(OPUS, top), false));
    let more = exact(top, vec![unsplit(12), unsplit(18), unsplit(5)]);
    let all = TokenCounts { cache_write_5m: 15, ..top };
    assert_eq!(last(&more, &ask()), (all, cost(OPUS, all), false));
}

#[test]
fn what_the_list_has_no_price_for_is_an_estimate_unless_nothing_was_used() {
    let (used, free) = (tokens(10, 10), TokenCounts::default());
    let unknown = |tokens, parts| Reading { model: Some("claude-y".to_owned()), ..exact(tokens, parts) };
    let fast = Ask { unpriced: true, ..ask() };
    let told_so = Reading { unpriced: true, ..exact(used, Vec::new()) };
    assert_eq!(last(&unknown(used, Vec::new()), &ask()), (used, cost("claude-y", used), true));
    assert!(last(&exact(used, vec![part(Some("claude-y"), used)]), &ask()).2);
    assert!(last(&exact(used, Vec::new()), &fast).2);
    assert!(last(&told_so, &ask()).2);
    for (reading, ask) in [(unknown(free, Vec::new()), &ask()), (exact(free, Vec::new()), &fast)] {
        assert_eq!(last(&reading, ask), (free, 0, false));
    }
    // All that was used has a price, whatever the message's model.
    assert!(!last(&unknown(free, vec![part(Some(OPUS), used)]), &ask()).2);
}

#[test]
fn a_cut_reply_of_a_call_whose_end_tells_all_counts_its_input_once_more() {
    let mut twice = ask().read_twice();
    (twice.apart_input, twice.estimate.input) = (700, 1_400);
    let cut = Reading { exact: false, ..exact(tokens(50, 2_000), Vec::new()) };
    assert_eq!(last(&cut, &twice), (tokens(750, 2_000), cost(OPUS, tokens(750, 2_000)), true));
    // What it has come to is what it says; what it would count as is more.
    assert_eq!(cut.bill(&twice, 2_000, &PriceTable::shipped()).tokens, tokens(50, 2_000));
    assert_eq!(last(&Reading::default(), &twice).0, twice.estimate);
    assert_eq!(last(&exact(tokens(50, 2_000), Vec::new()), &twice).0, tokens(50, 2_000));
    assert_eq!(last(&cut, &ask()).0, tokens(50, 2_000));
}

#[test]
fn huge_counts_saturate_instead_of_wrapping() {
    let most = TokenCounts {
        input: i64::MAX,
        output: i64::MAX,
        cache_read: i64::MAX,
        cache_write_5m: i64::MAX,
        cache_write_1h: i64::MAX,
    };
    let reading = exact(most, vec![part(None, most), part(None, most)]);
    assert_eq!(last(&reading, &ask()), (most, i64::MAX, false));
}
