//! Tokens and cost. Money is whole micro-USD; a price is micro-USD per million tokens.

use serde::{Deserialize, Serialize};

use crate::run::text_enum;

/// Longest time that one report of usage covers, in days: the bound of what is read for it.
pub const USAGE_REPORT_DAYS: i64 = 366;
/// Time that a report of usage covers when nobody names one, in days.
pub const USAGE_REPORT_DAYS_DEFAULT: i64 = 30;

text_enum! {
    /// By what a report of usage adds model calls up.
    UsageBy, "usage grouping" {
        /// The day (UTC) in which a call began.
        Day = "day",
        /// The model that answered.
        Model = "model",
        /// The workflow of its run.
        Workflow = "workflow",
        /// Its session.
        Session = "session",
        /// Its run.
        Run = "run",
        /// Its project.
        Project = "project",
    }
}

/// Tokens of one model call, as the model API's reply counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCounts {
    /// Uncached input.
    pub input: i64,
    /// Output, thinking included.
    pub output: i64,
    /// Input read from the cache.
    pub cache_read: i64,
    /// Input written to the cache for five minutes.
    pub cache_write_5m: i64,
    /// Input written to the cache for one hour.
    pub cache_write_1h: i64,
}

/// What the calls of a run, session or project add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageTotals {
    /// Model calls begun.
    pub calls: i64,
    /// Calls whose numbers are an estimate: their reply was cut, or the model API ran tools of its own, which cost more
    /// than tokens.
    pub estimated_calls: i64,
    /// Tokens.
    #[serde(flatten)]
    pub tokens: TokenCounts,
    /// Cost in micro-USD.
    pub cost_micro_usd: i64,
}

/// Prices of one model, in micro-USD per million tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPrice {
    /// The model id, or the beginning of ids (a dated id begins with its model's).
    pub id: String,
    /// Uncached input.
    pub input_micro_usd_per_mtok: i64,
    /// Output.
    pub output_micro_usd_per_mtok: i64,
    /// Cache read.
    pub cache_read_micro_usd_per_mtok: i64,
    /// Cache write for five minutes.
    pub cache_write_5m_micro_usd_per_mtok: i64,
    /// Cache write for one hour.
    pub cache_write_1h_micro_usd_per_mtok: i64,
    /// What a request with a long input costs instead, output included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_context: Option<LongContextPrice>,
}

/// The dearer tier of a model, judged for each request by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LongContextPrice {
    /// It applies when input, cache reads and cache writes together are more than this.
    pub above_input_tokens: i64,
    /// Uncached input.
    pub input_micro_usd_per_mtok: i64,
    /// Output.
    pub output_micro_usd_per_mtok: i64,
    /// Cache read.
    pub cache_read_micro_usd_per_mtok: i64,
    /// Cache write for five minutes.
    pub cache_write_5m_micro_usd_per_mtok: i64,
    /// Cache write for one hour.
    pub cache_write_1h_micro_usd_per_mtok: i64,
}

impl LongContextPrice {
    /// In the order of [`TokenCounts::parts`].
    const fn rates(&self) -> [i64; 5] {
        [
            self.input_micro_usd_per_mtok,
            self.output_micro_usd_per_mtok,
            self.cache_read_micro_usd_per_mtok,
            self.cache_write_5m_micro_usd_per_mtok,
            self.cache_write_1h_micro_usd_per_mtok,
        ]
    }
}

impl ModelPrice {
    /// In the order of [`TokenCounts::parts`].
    const fn rates(&self) -> [i64; 5] {
        [
            self.input_micro_usd_per_mtok,
            self.output_micro_usd_per_mtok,
            self.cache_read_micro_usd_per_mtok,
            self.cache_write_5m_micro_usd_per_mtok,
            self.cache_write_1h_micro_usd_per_mtok,
        ]
    }

    fn rates_for(&self, tokens: &TokenCounts) -> [i64; 5] {
        match &self.long_context {
            Some(tier) if tokens.whole_input() > i128::from(tier.above_input_tokens) => tier.rates(),
            Some(_) | None => self.rates(),
        }
    }
}

impl TokenCounts {
    /// Input, output, cache read, cache write for five minutes, cache write for one hour.
    const fn parts(&self) -> [i64; 5] {
        [self.input, self.output, self.cache_read, self.cache_write_5m, self.cache_write_1h]
    }

    /// Everything that went in, cached or not.
    fn whole_input(&self) -> i128 {
        [self.input, self.cache_read, self.cache_write_5m, self.cache_write_1h]
            .into_iter()
            .map(i128::from)
            .sum()
    }
}

/// A price list: data, replaceable by configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceTable {
    /// Where the numbers come from.
    pub source: String,
    /// One entry a model.
    pub models: Vec<ModelPrice>,
    /// The entry used for an unknown model.
    pub default: String,
}

/// Why a price list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    /// Not the expected JSON.
    #[error("the price list is not valid")]
    Json(#[from] serde_json::Error),
    /// `default` names no entry.
    #[error("the price list's default \"{0}\" is none of its models")]
    Default(String),
    /// A price is below zero.
    #[error("the price list has a negative price for \"{0}\"")]
    Negative(String),
}

impl PriceTable {
    /// Reads a list from JSON.
    ///
    /// # Errors
    /// [`PriceError`] that says what is wrong with it.
    pub fn from_json(text: &str) -> Result<Self, PriceError> {
        let table: Self = serde_json::from_str(text)?;
        if !table.models.iter().any(|price| price.id == table.default) {
            return Err(PriceError::Default(table.default));
        }
        let negative = |price: &&ModelPrice| {
            let tier = price.long_context.as_ref().map(LongContextPrice::rates).unwrap_or_default();
            price.rates().iter().chain(&tier).any(|rate| *rate < 0)
        };
        match table.models.iter().find(negative) {
            Some(price) => Err(PriceError::Negative(price.id.clone())),
            None => Ok(table),
        }
    }

    /// The list that ships with Caisson.
    ///
    /// # Panics
    /// Never: a test reads the same file.
    #[must_use]
    pub fn shipped() -> Self {
        Self::from_json(include_str!("prices.json")).expect("the shipped price list is read by a test")
    }

    /// Cost of a call in micro-USD, rounded up so that nothing is lost.
    #[must_use]
    pub fn cost_micro_usd(&self, model: &str, tokens: &TokenCounts) -> i64 {
        let Some(price) = self.price(model) else { return 0 };
        let sum: i128 = tokens
            .parts()
            .iter()
            .zip(price.rates_for(tokens))
            .map(|(count, rate)| i128::from((*count).max(0)) * i128::from(rate))
            .sum();
        i64::try_from(sum.div_euclid(1_000_000) + i128::from(sum % 1_000_000 != 0)).unwrap_or(i64::MAX)
    }

    /// The longest entry that `model` begins with, else the default entry.
    fn price(&self, model: &str) -> Option<&ModelPrice> {
        self.models
            .iter()
            .filter(|price| model.starts_with(&price.id))
            .max_by_key(|price| price.id.len())
            .or_else(|| self.models.iter().find(|price| price.id == self.default))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> PriceTable {
        let price = |id: &str, input| ModelPrice {
            id: id.to_owned(),
            input_micro_usd_per_mtok: input,
            output_micro_usd_per_mtok: 20_000_000,
            cache_read_micro_usd_per_mtok: 400_000,
            cache_write_5m_micro_usd_per_mtok: 5_000_000,
            cache_write_1h_micro_usd_per_mtok: 8_000_000,
            long_context: None,
        };
        PriceTable {
            source: "test".to_owned(),
            models: vec![price("big", 4_000_000), price("big-cheap", 1_000_000)],
            default: "big".to_owned(),
        }
    }

    #[test]
    fn cost_is_rounded_up_to_the_next_micro_usd() {
        let one = TokenCounts { cache_read: 1, ..TokenCounts::default() };
        assert_eq!(table().cost_micro_usd("big", &one), 1);
        let million = TokenCounts { input: 1_000_000, output: 1_000_000, ..TokenCounts::default() };
        assert_eq!(table().cost_micro_usd("big-2026", &million), 24_000_000);
        assert_eq!(table().cost_micro_usd("big", &TokenCounts::default()), 0);
    }

    #[test]
    fn the_longest_matching_entry_is_used_and_else_the_default() {
        let tokens = TokenCounts { input: 1_000_000, ..TokenCounts::default() };
        assert_eq!(table().cost_micro_usd("big-cheap-2", &tokens), 1_000_000);
        assert_eq!(table().cost_micro_usd("unknown", &tokens), 4_000_000);
    }

    #[test]
    fn a_long_input_is_priced_by_its_tier_output_included() {
        let mut table = table();
        table.models[0].long_context = Some(LongContextPrice {
            above_input_tokens: 100,
            input_micro_usd_per_mtok: 1,
            output_micro_usd_per_mtok: 100_000_000,
            cache_read_micro_usd_per_mtok: 0,
            cache_write_5m_micro_usd_per_mtok: 0,
            cache_write_1h_micro_usd_per_mtok: 0,
        });
        let mut tokens = TokenCounts { input: 50, cache_read: 50, output: 10, ..TokenCounts::default() };
        assert_eq!(table.cost_micro_usd("big", &tokens), 420);
        tokens.cache_write_5m = 1;
        assert_eq!(table.cost_micro_usd("big", &tokens), 1_001);
    }

    #[test]
    fn the_shipped_tier_of_haiku_begins_above_100_000_tokens() {
        let table = PriceTable::shipped();
        let cost = |input| {
            table.cost_micro_usd("claude-haiku-5-5", &TokenCounts { input, ..TokenCounts::default() })
        };
        assert_eq!(cost(100_000), 10_000);
        assert_eq!(cost(100_001), 50_001);
    }

    #[test]
    fn huge_counts_saturate_instead_of_wrapping() {
        let tokens = TokenCounts { input: i64::MAX, output: i64::MAX, ..TokenCounts::default() };
        assert_eq!(table().cost_micro_usd("big", &tokens), i64::MAX);
    }

    #[test]
    fn a_bad_list_is_refused() {
        let mut bad = table();
        bad.default = "other".to_owned();
        let json = serde_json::to_string(&bad).unwrap();
        assert!(matches!(PriceTable::from_json(&json), Err(PriceError::Default(_))));
        bad = table();
        bad.models[0].output_micro_usd_per_mtok = -1;
        let json = serde_json::to_string(&bad).unwrap();
        assert!(matches!(PriceTable::from_json(&json), Err(PriceError::Negative(_))));
        assert!(matches!(PriceTable::from_json("{}"), Err(PriceError::Json(_))));
    }

    #[test]
    fn the_shipped_list_is_valid() {
        assert!(
            PriceTable::shipped()
                .cost_micro_usd("x", &TokenCounts { input: 1_000, ..TokenCounts::default() })
                > 0
        );
    }
}
