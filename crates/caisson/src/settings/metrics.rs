//! The section `metrics`.

use serde::Deserialize;

/// What `/metrics` needs.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Metrics {
    /// Whether `/metrics` is answered without a key. Default false: it needs one of the default project with the scope `admin`.
    /// `CAISSON_METRICS__PUBLIC`.
    pub public: bool,
}
