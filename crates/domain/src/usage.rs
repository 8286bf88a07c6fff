//! Tokens and cost. Money is whole micro-USD; a price is micro-USD per million tokens.

use serde::{Deserialize, Serialize};

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
    /// Calls whose numbers are an estimate, because their reply was cut.
    pub estimated_calls: i64,
    /// Tokens.
    #[serde(flatten)]
    pub tokens: TokenCounts,
    /// Cost in micro-USD.
    pub cost_micro_usd: i64,
}

/// Prices of one model.
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
            [
                price.input_micro_usd_per_mtok,
                price.output_micro_usd_per_mtok,
                price.cache_read_micro_usd_per_mtok,
                price.cache_write_5m_micro_usd_per_mtok,
                price.cache_write_1h_micro_usd_per_mtok,
            ]
            .iter()
            .any(|value| *value < 0)
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
        let parts = [
            (tokens.input, price.input_micro_usd_per_mtok),
            (tokens.output, price.output_micro_usd_per_mtok),
            (tokens.cache_read, price.cache_read_micro_usd_per_mtok),
            (tokens.cache_write_5m, price.cache_write_5m_micro_usd_per_mtok),
            (tokens.cache_write_1h, price.cache_write_1h_micro_usd_per_mtok),
        ];
        let sum: i128 =
            parts.iter().map(|(count, price)| i128::from((*count).max(0)) * i128::from(*price)).sum();
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
