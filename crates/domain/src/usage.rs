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
    /// Calls whose numbers are an estimate: their reply was cut, or it cost something that the price list does not say.
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
    /// The model id, or the beginning of ids (a dated id begins with its model's); an empty one stands for all other models.
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

    /// Both together, of each kind.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            output: self.output.saturating_add(other.output),
            cache_read: self.cache_read.saturating_add(other.cache_read),
            cache_write_5m: self.cache_write_5m.saturating_add(other.cache_write_5m),
            cache_write_1h: self.cache_write_1h.saturating_add(other.cache_write_1h),
        }
    }

    /// By how much there is more of each kind than in `other`; zero where there is not.
    #[must_use]
    pub fn beyond(&self, other: &Self) -> Self {
        let more = |here: i64, there: i64| here.saturating_sub(there).max(0);
        Self {
            input: more(self.input, other.input),
            output: more(self.output, other.output),
            cache_read: more(self.cache_read, other.cache_read),
            cache_write_5m: more(self.cache_write_5m, other.cache_write_5m),
            cache_write_1h: more(self.cache_write_1h, other.cache_write_1h),
        }
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
    /// One entry a model, and one at least.
    pub models: Vec<ModelPrice>,
}

/// Why a price list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    /// Not the expected JSON.
    #[error("the price list is not valid")]
    Json(#[from] serde_json::Error),
    /// It has no entry, so that nothing would cost anything.
    #[error("the price list has no models")]
    Empty,
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
        if table.models.is_empty() {
            return Err(PriceError::Empty);
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

    /// Cost of a call in micro-USD, rounded up so that nothing is lost. A model that is not [listed](Self::lists) costs as much
    /// as the dearest entry, for each kind of token: whoever names the model must not make it cheap.
    #[must_use]
    pub fn cost_micro_usd(&self, model: &str, tokens: &TokenCounts) -> i64 {
        let rates = self.entry(model).map_or_else(|| self.dearest(tokens), |price| price.rates_for(tokens));
        let sum: i128 = tokens
            .parts()
            .iter()
            .zip(rates)
            .map(|(count, rate)| i128::from((*count).max(0)) * i128::from(rate))
            .sum();
        i64::try_from(sum.div_euclid(1_000_000) + i128::from(sum % 1_000_000 != 0)).unwrap_or(i64::MAX)
    }

    /// Whether an entry is for this model. What a call of any other costs is an estimate.
    #[must_use]
    pub fn lists(&self, model: &str) -> bool {
        self.entry(model).is_some()
    }

    /// The longest entry that `model` begins with.
    fn entry(&self, model: &str) -> Option<&ModelPrice> {
        let entries = self.models.iter().filter(|price| model.starts_with(&price.id));
        entries.max_by_key(|price| price.id.len())
    }

    /// The highest rate that any entry has for these tokens, of each kind.
    fn dearest(&self, tokens: &TokenCounts) -> [i64; 5] {
        self.models.iter().fold([0; 5], |dearest, price| {
            let rates = price.rates_for(tokens);
            std::array::from_fn(|kind| dearest[kind].max(rates[kind]))
        })
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
    fn the_longest_matching_entry_is_used() {
        let tokens = TokenCounts { input: 1_000_000, ..TokenCounts::default() };
        assert_eq!(table().cost_micro_usd("big-cheap-2", &tokens), 1_000_000);
        assert!(table().lists("big-cheap-2") && table().lists("big"));
    }

    #[test]
    fn a_model_that_the_list_lacks_costs_as_much_as_the_dearest_of_each_kind() {
        let mut table = table();
        table.models[0].output_micro_usd_per_mtok = 3_000_000;
        table.models[1].long_context = Some(LongContextPrice {
            above_input_tokens: 999_999,
            input_micro_usd_per_mtok: 6_000_000,
            output_micro_usd_per_mtok: 1,
            cache_read_micro_usd_per_mtok: 0,
            cache_write_5m_micro_usd_per_mtok: 0,
            cache_write_1h_micro_usd_per_mtok: 0,
        });
        let cost = |input, output| {
            table.cost_micro_usd("bi", &TokenCounts { input, output, ..TokenCounts::default() })
        };
        assert!(!table.lists("bi") && !table.lists(""));
        // The input's is of one entry, the output's of the other.
        assert_eq!(cost(500_000, 500_000), 2_000_000 + 10_000_000);
        assert_eq!(cost(1_000_000, 500_000), 6_000_000 + 1_500_000, "a tier counts where it applies");
        table.models[1].id = String::new();
        assert!(table.lists("bi"), "an entry for all others");
    }

    #[test]
    fn by_the_shipped_list_an_unknown_model_is_no_cheaper_than_any_that_is_known() {
        let table = PriceTable::shipped();
        let counts = [
            TokenCounts { input: 90_000, ..TokenCounts::default() },
            TokenCounts { output: 90_000, ..TokenCounts::default() },
            TokenCounts { cache_read: 200_000, ..TokenCounts::default() },
            TokenCounts { cache_write_5m: 200_000, ..TokenCounts::default() },
            TokenCounts { cache_write_1h: 200_000, ..TokenCounts::default() },
        ];
        for tokens in counts {
            let unknown = table.cost_micro_usd("of-tomorrow", &tokens);
            let known = table.models.iter().map(|price| table.cost_micro_usd(&price.id, &tokens));
            assert_eq!(Some(unknown), known.max(), "{tokens:?}");
        }
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
        bad.models.clear();
        let json = serde_json::to_string(&bad).unwrap();
        assert!(matches!(PriceTable::from_json(&json), Err(PriceError::Empty)));
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
