//! What a call comes to: its reply's counts at the prices of the models that wrote it. Pure.

use caisson_domain::usage::{PriceTable, TokenCounts};

use super::ask::Ask;
use super::meter::Reading;
use super::usage::Part;

/// What a call is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bill {
    pub(super) tokens: TokenCounts,
    pub(super) cost_micro_usd: i64,
    /// Whether the numbers are an estimate.
    pub(super) estimated: bool,
}

impl Reading {
    /// What the call has come to with so much output.
    ///
    /// What a reply lists pass by pass is priced so, each by its own model, and by its own length of input. Where the top level
    /// has more of a kind than all passes together, the rest is the message's.
    pub(super) fn bill(&self, ask: &Ask, output: i64, prices: &PriceTable) -> Bill {
        let model = self.model.as_ref().unwrap_or(&ask.model);
        let top = TokenCounts { output, ..self.tokens.unwrap_or(ask.estimate) };
        let mut parts = self.parts.clone();
        split_as_told(&mut parts, &top);
        let sum = parts.iter().fold(TokenCounts::default(), |sum, part| sum.plus(&part.tokens));
        let rest = Part { model: None, tokens: top.beyond(&sum) };
        let tokens = sum.plus(&rest.tokens);
        let (mut cost_micro_usd, mut listed) = (0_i64, true);
        for part in parts.iter().chain([&rest]).filter(|part| part.tokens != TokenCounts::default()) {
            let model = part.model.as_ref().unwrap_or(model);
            listed &= prices.lists(model);
            cost_micro_usd = cost_micro_usd.saturating_add(prices.cost_micro_usd(model, &part.tokens));
        }
        let costs = tokens != TokenCounts::default();
        let estimated = !self.exact || self.unpriced || (costs && (ask.unpriced || !listed));
        Bill { tokens, cost_micro_usd, estimated }
    }

    /// What the call counts as if no more is heard of it: what it has come to, and where only the end of the reply would have told
    /// all, the input once more.
    pub(super) fn bill_if_cut(&self, ask: &Ask, output: i64, prices: &PriceTable) -> Bill {
        let bill = self.bill(ask, output, prices);
        // Where nothing is told, the estimate has it already.
        if self.tokens.is_none() || self.exact {
            return bill;
        }
        let apart = TokenCounts { input: ask.apart_input, ..TokenCounts::default() };
        let cost = prices.cost_micro_usd(self.model.as_ref().unwrap_or(&ask.model), &apart);
        let cost_micro_usd = bill.cost_micro_usd.saturating_add(cost);
        Bill { tokens: bill.tokens.plus(&apart), cost_micro_usd, ..bill }
    }

    /// What the call is settled with. What is not final is at least as much as was seen, and at least the estimate: an honest
    /// guess errs to the dear side.
    pub(super) fn last_bill(&self, ask: &Ask, prices: &PriceTable) -> Bill {
        let output = match self.tokens {
            Some(tokens) if self.exact => tokens.output,
            Some(_) | None => self.output_so_far().max(ask.estimate.output),
        };
        self.bill_if_cut(ask, output, prices)
    }
}

/// Passes may name what they wrote to the cache without saying for how long; then as much of it was for an hour as the top level
/// has more of that than they do.
fn split_as_told(parts: &mut [Part], top: &TokenCounts) {
    let told = parts.iter().fold(0_i64, |sum, part| sum.saturating_add(part.tokens.cache_write_1h));
    let mut hour = top.cache_write_1h.saturating_sub(told).max(0);
    for Part { tokens, .. } in parts {
        let moved = tokens.cache_write_5m.min(hour);
        tokens.cache_write_5m -= moved;
        tokens.cache_write_1h = tokens.cache_write_1h.saturating_add(moved);
        hour -= moved;
    }
}

#[cfg(test)]
#[path = "bill_tests.rs"]
mod tests;
