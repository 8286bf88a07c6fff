//! What one model call counts for at most.

use caisson_domain::usage::TokenCounts;

/// Most tokens of one kind that one call counts for: far beyond any model, and far from overflowing a sum.
pub const CALL_TOKENS_MAX: i64 = 1_000_000_000;
/// Most that one call costs, in micro-USD: a million dollars, far from overflowing a sum.
pub const CALL_COST_MICRO_USD_MAX: i64 = 1_000_000_000_000;

/// A reply is not trusted to hold sane numbers.
pub(crate) fn bounded_tokens(tokens: &TokenCounts) -> TokenCounts {
    let bound = |count: i64| count.clamp(0, CALL_TOKENS_MAX);
    TokenCounts {
        input: bound(tokens.input),
        output: bound(tokens.output),
        cache_read: bound(tokens.cache_read),
        cache_write_5m: bound(tokens.cache_write_5m),
        cache_write_1h: bound(tokens.cache_write_1h),
    }
}

/// As [`bounded_tokens`].
pub(crate) fn bounded_cost(cost_micro_usd: i64) -> i64 {
    cost_micro_usd.clamp(0, CALL_COST_MICRO_USD_MAX)
}
