//! Going through the chains, from the first record of each to its last.

use std::collections::BTreeMap;
use std::fmt;

use caisson_domain::limits::PAGE_ITEMS;

use super::record::{self, AUDIT_HASH_START, AuditRecord, audit_columns};
use crate::database::sql;
use crate::{Store, StoreError};

/// The end of a chain, or a place in it that somebody vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditHead {
    /// The chain.
    pub chain: String,
    /// The record's place.
    pub seq: i64,
    /// The record's hash.
    pub hash: String,
}

/// What is wrong with a chain, by the first record that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditFault {
    /// A record is not there.
    Missing {
        /// Its place.
        seq: i64,
    },
    /// A record's content does not have its hash: it was changed, or exchanged with another.
    Changed {
        /// Its place.
        seq: i64,
    },
    /// A record fits its own hash, but names another hash for the one before it.
    Unlinked {
        /// Its place.
        seq: i64,
    },
    /// A record was written before the one in front of it.
    OutOfOrder {
        /// Its place.
        seq: i64,
    },
    /// The chain ends before the head that somebody vouches for.
    Cut {
        /// The chain's last place; 0 if nothing is left.
        last: i64,
        /// The head's place.
        head: i64,
    },
    /// The record at the head's place has another hash: the chain was made anew.
    Rewritten {
        /// The head's place.
        seq: i64,
    },
}

impl fmt::Display for AuditFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { seq } => write!(out, "record {seq} is missing"),
            Self::Changed { seq } => {
                write!(out, "record {seq} does not have its hash: it was changed, or exchanged with another")
            }
            Self::Unlinked { seq } => {
                write!(out, "record {seq} does not follow the record before it: one of the two was replaced")
            }
            Self::OutOfOrder { seq } => {
                write!(out, "record {seq} was written before the record in front of it")
            }
            Self::Cut { last, head } => {
                write!(out, "record {} is missing: the signed head is record {head}", last + 1)
            }
            Self::Rewritten { seq } => {
                write!(out, "record {seq} is not the one that was signed: the chain was made anew")
            }
        }
    }
}

/// What was found in one chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainReport {
    /// The server.
    pub chain: String,
    /// Records that were looked at.
    pub records: i64,
    /// Whether a head vouches for the chain.
    pub vouched: Option<i64>,
    /// The first fault.
    pub fault: Option<AuditFault>,
}

/// What was found in the whole log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditReport {
    /// Every chain, by name.
    pub chains: Vec<ChainReport>,
    /// Records of an earlier version that are in no chain yet.
    pub unchained: i64,
}

const CHAIN_PAGE: &str =
    concat!("select ", audit_columns!(), " from audit where chain = $1 and seq > $2 order by seq limit $3");

const NEXT_CHAIN: &str = "select chain from audit where chain > $1 order by chain limit 1";

const UNCHAINED: &str =
    "select count(*) from audit_before where number > (select coalesce(max(before_number), 0) from audit)";

impl Store {
    /// Goes through every chain and compares it with the heads that somebody vouches for, one for a chain at most. Reads
    /// page by page, so that a long log costs time and no memory.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn verify_audit(&self, heads: &[AuditHead]) -> Result<AuditReport, StoreError> {
        let mut heads: BTreeMap<_, _> = heads.iter().map(|head| (head.chain.as_str(), head)).collect();
        let mut report = AuditReport {
            unchained: sql::query_scalar(UNCHAINED).fetch_one(self.reader()).await?,
            ..AuditReport::default()
        };
        let mut last = String::new();
        while let Some(chain) =
            sql::query_scalar::<String>(NEXT_CHAIN).bind(&last).fetch_optional(self.reader()).await?
        {
            report.chains.push(self.verify_chain(&chain, heads.remove(chain.as_str())).await?);
            last = chain;
        }
        // A chain of which nothing is left.
        for head in heads.into_values() {
            let fault = Some(AuditFault::Cut { last: 0, head: head.seq });
            let chain = head.chain.clone();
            report.chains.push(ChainReport { chain, records: 0, vouched: Some(head.seq), fault });
        }
        Ok(report)
    }

    async fn verify_chain(&self, chain: &str, head: Option<&AuditHead>) -> Result<ChainReport, StoreError> {
        let mut walk = Walk { seq: 0, number: i64::MIN, hash: AUDIT_HASH_START.to_owned(), head };
        let report = |records, fault| ChainReport {
            chain: chain.to_owned(),
            records,
            vouched: head.map(|head| head.seq),
            fault,
        };
        loop {
            let rows = sql::query(CHAIN_PAGE)
                .bind(chain)
                // Places below 1 are no gap in front of the first record: they are faults as well.
                .bind(if walk.seq == 0 { i64::MIN } else { walk.seq })
                .bind(PAGE_ITEMS)
                .fetch_all(self.reader())
                .await?;
            if rows.is_empty() {
                return Ok(report(walk.seq, walk.end()));
            }
            for row in &rows {
                if let Some(fault) = walk.step(&record::read(row)?) {
                    return Ok(report(walk.seq, Some(fault)));
                }
            }
        }
    }
}

/// Where the walk along a chain is: behind a record that fits.
struct Walk<'h> {
    seq: i64,
    number: i64,
    hash: String,
    head: Option<&'h AuditHead>,
}

impl Walk<'_> {
    /// Looks at the next record; what is wrong with it, or none.
    fn step(&mut self, record: &AuditRecord) -> Option<AuditFault> {
        let seq = self.seq + 1;
        let fault = if record.seq != seq {
            AuditFault::Missing { seq }
        } else if record.computed_hash() != record.hash {
            AuditFault::Changed { seq }
        } else if record.prev_hash != self.hash {
            AuditFault::Unlinked { seq }
        } else if record.number <= self.number {
            AuditFault::OutOfOrder { seq }
        } else if self.head.is_some_and(|head| head.seq == seq && head.hash != record.hash) {
            AuditFault::Rewritten { seq }
        } else {
            (self.seq, self.number) = (seq, record.number);
            self.hash.clone_from(&record.hash);
            return None;
        };
        Some(fault)
    }

    /// Whether the chain may end here.
    fn end(&self) -> Option<AuditFault> {
        let head = self.head.filter(|head| head.seq > self.seq)?;
        Some(AuditFault::Cut { last: self.seq, head: head.seq })
    }
}
