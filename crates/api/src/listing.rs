//! Pages of lists, and the cursors between them.

use std::str::FromStr;

use caisson_domain::limits;

use crate::extract::Params;

/// Which page of a list is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PageQuery<Id> {
    pub(crate) after: Option<Id>,
    pub(crate) limit: u32,
}

impl<Id: FromStr> PageQuery<Id> {
    /// Takes `cursor` and `limit`.
    pub(crate) fn take(params: &mut Params) -> Self {
        let most = i64::from(limits::PAGE_ITEMS);
        let limit = params.take_in("limit", 1..=most).and_then(|limit| u32::try_from(limit).ok());
        Self { after: take_cursor(params), limit: limit.unwrap_or(limits::PAGE_ITEMS_DEFAULT) }
    }
}

/// Takes `cursor` alone, for a list whose pages have a length of their own.
pub(crate) fn take_cursor<Id: FromStr>(params: &mut Params) -> Option<Id> {
    let cursor: Option<String> = params.take("cursor");
    let after = cursor.as_deref().map(decode::<Id>);
    if after.as_ref().is_some_and(Option::is_none) {
        params.fault("cursor", "it is not a next_cursor of this list");
    }
    after.flatten()
}

/// A cursor that goes on behind `id`. Opaque to clients, so that its content may change.
pub(crate) fn encode(id: &str) -> String {
    hex::encode(id)
}

fn decode<Id: FromStr>(cursor: &str) -> Option<Id> {
    String::from_utf8(hex::decode(cursor).ok()?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use caisson_domain::id::{RunId, SessionId};

    use super::*;

    #[test]
    fn a_cursor_goes_back_only_to_the_kind_of_list_it_came_from() {
        let id = RunId::new(1, [7; 10]);
        let cursor = encode(id.as_str());
        assert_eq!(decode::<RunId>(&cursor), Some(id));
        assert_eq!(decode::<SessionId>(&cursor), None);
        for bad in ["", "zz", "ff", "72756e5f"] {
            assert_eq!(decode::<RunId>(bad), None, "{bad}");
        }
    }
}
