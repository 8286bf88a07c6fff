//! Reading paths, queries and bodies, each refusal a problem of ours.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use caisson_domain::id::{ApiKeyId, ApprovalId, RunId, SessionId};
use caisson_domain::run::cut;
use http::request::Parts;
use http::{HeaderMap, header};
use serde::de::{DeserializeOwned, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::error::Category;

use crate::body::{check_values, read_body};
use crate::problem::{ApiError, Faults};
use crate::state::App;

/// Longest part of a parser's message that a problem repeats, in bytes: it may quote the input.
const PARSER_TEXT_BYTES: usize = 300;

/// The run that the path names.
pub(crate) struct RunPath(pub(crate) RunId);

/// The session that the path names.
pub(crate) struct SessionPath(pub(crate) SessionId);

/// The API key that the path names.
pub(crate) struct KeyPath(pub(crate) ApiKeyId);

/// The `name` in the path.
pub(crate) struct NamePath(pub(crate) String);

/// The run and the artifact's name that the path holds.
pub(crate) struct ArtifactPath(pub(crate) RunId, pub(crate) String);

/// The run and its approval that the path names.
pub(crate) struct ApprovalPath(pub(crate) RunId, pub(crate) ApprovalId);

pub(crate) fn unknown_approval() -> ApiError {
    ApiError::Unknown { code: "unknown_approval", detail: "the run has no such approval".to_owned() }
}

pub(crate) fn unknown_run() -> ApiError {
    ApiError::Unknown { code: "unknown_run", detail: "there is no such run".to_owned() }
}

pub(crate) fn unknown_session() -> ApiError {
    ApiError::Unknown { code: "unknown_session", detail: "there is no such session".to_owned() }
}

pub(crate) fn unknown_key() -> ApiError {
    ApiError::Unknown { code: "unknown_key", detail: "there is no such valid key".to_owned() }
}

impl FromRequestParts<App> for KeyPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let id = path_param(parts, app, "id").await;
        id.and_then(|id| id.parse().ok()).map(Self).ok_or_else(unknown_key)
    }
}

impl FromRequestParts<App> for RunPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let id = path_param(parts, app, "id").await;
        id.and_then(|id| id.parse().ok()).map(Self).ok_or_else(unknown_run)
    }
}

impl FromRequestParts<App> for SessionPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let id = path_param(parts, app, "id").await;
        id.and_then(|id| id.parse().ok()).map(Self).ok_or_else(unknown_session)
    }
}

impl FromRequestParts<App> for NamePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        path_param(parts, app, "name").await.map(Self).ok_or_else(|| ApiError::Unknown {
            code: "unknown_name",
            detail: "the name in the path is not UTF-8".to_owned(),
        })
    }
}

impl FromRequestParts<App> for ApprovalPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let RunPath(run) = RunPath::from_request_parts(parts, app).await?;
        let id = path_param(parts, app, "approval").await;
        let approval = id.and_then(|id| id.parse().ok()).ok_or_else(unknown_approval)?;
        Ok(Self(run, approval))
    }
}

impl FromRequestParts<App> for ArtifactPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let RunPath(run) = RunPath::from_request_parts(parts, app).await?;
        let NamePath(name) = NamePath::from_request_parts(parts, app).await?;
        Ok(Self(run, name))
    }
}

/// One decoded part of the path; none if it is not UTF-8.
pub(crate) async fn path_param(parts: &mut Parts, app: &App, name: &str) -> Option<String> {
    let params = RawPathParams::from_request_parts(parts, app).await.ok()?;
    params.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

/// The parameters of a query, to be taken one by one; what is left over is a fault.
pub(crate) struct Params {
    pairs: BTreeMap<String, String>,
    known: Vec<&'static str>,
    faults: Faults,
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let mut params = Self { pairs: BTreeMap::new(), known: Vec::new(), faults: Faults::default() };
        for (name, value) in url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
            if params.pairs.insert(name.to_string(), value.into_owned()).is_some() {
                params.faults.add(&name, "repeated_parameter", "it is given more than once");
            }
        }
        Ok(params)
    }
}

impl Params {
    /// Takes a parameter and parses it; a text that does not parse is a fault.
    pub(crate) fn take<T>(&mut self, name: &'static str) -> Option<T>
    where
        T: FromStr<Err: fmt::Display>,
    {
        self.known.push(name);
        match self.pairs.remove(name)?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.faults.add(name, "invalid_parameter", error.to_string());
                None
            }
        }
    }

    /// Takes a whole number that must lie in `range`.
    pub(crate) fn take_in(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<i64> {
        self.known.push(name);
        let text = self.pairs.remove(name)?;
        let value = text.parse().ok().filter(|value| range.contains(value));
        if value.is_none() {
            let message = format!("it is not a whole number from {} to {}", range.start(), range.end());
            self.faults.add(name, "out_of_range", message);
        }
        value
    }

    pub(crate) fn fault(&mut self, name: &'static str, message: impl Into<String>) {
        self.faults.add(name, "invalid_parameter", message);
    }

    /// Ends the taking.
    ///
    /// # Errors
    /// [`ApiError::Query`] with all faults, unknown parameters among them.
    pub(crate) fn finish(mut self) -> Result<(), ApiError> {
        let known = self.known.join(", ");
        for name in self.pairs.keys() {
            let message = if known.is_empty() {
                "there is no such parameter; this path takes none".to_owned()
            } else {
                format!("there is no such parameter; known ones: {known}")
            };
            self.faults.add(name, "unknown_parameter", message);
        }
        if self.faults.is_empty() { Ok(()) } else { Err(ApiError::Query(self.faults)) }
    }
}

/// A query that must be empty.
pub(crate) struct NoParams;

impl<S: Send + Sync> FromRequestParts<S> for NoParams {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Params::from_request_parts(parts, state).await?.finish().map(|()| Self)
    }
}

/// A JSON object, read whole up to [`caisson_domain::limits::API_BODY_BYTES`].
pub(crate) struct JsonObject(pub(crate) Fields);

impl FromRequest<App> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::MediaType);
        }
        let (parts, body) = request.into_parts();
        Fields::parse(&read_body(app, &parts, body).await?).map(Self)
    }
}

pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let Some(text) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = text.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

/// A kind of JSON value that a field may be.
pub(crate) trait Kind: DeserializeOwned {
    /// What it is, for people.
    const KIND: &'static str;
}

impl Kind for String {
    const KIND: &'static str = "a text";
}

impl Kind for bool {
    const KIND: &'static str = "true or false";
}

impl Kind for Vec<String> {
    const KIND: &'static str = "a list of texts";
}

impl Kind for BTreeMap<String, Value> {
    const KIND: &'static str = "an object";
}

/// The fields of a JSON object, to be taken one by one; what is left over is a fault.
pub(crate) struct Fields {
    prefix: String,
    map: BTreeMap<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// Reads an object in which no field comes twice, of [`caisson_domain::json::JSON_VALUES`] values at most.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        check_values(body)?;
        match serde_json::from_slice::<Object>(body) {
            Ok(Object(map)) => Ok(Self { prefix: String::new(), map, known: Vec::new() }),
            Err(error) => {
                let text = cut(&error.to_string(), PARSER_TEXT_BYTES).to_owned();
                Err(match error.classify() {
                    Category::Syntax | Category::Eof | Category::Io => ApiError::Malformed(text),
                    Category::Data => ApiError::Body(text),
                })
            }
        }
    }

    /// The fields of an object that was read already.
    pub(crate) fn of(map: serde_json::Map<String, Value>) -> Self {
        Self { prefix: String::new(), map: map.into_iter().collect(), known: Vec::new() }
    }

    /// The fields of an object in a list, with the name of its place.
    pub(crate) fn within(place: &str, map: serde_json::Map<String, Value>) -> Self {
        Self { prefix: format!("{place}."), map: map.into_iter().collect(), known: Vec::new() }
    }

    /// The name of a field with the names of the objects around it.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Takes a field as it is; absent and `null` differ.
    pub(crate) fn take_value(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.map.remove(name)
    }

    /// Takes a field that may be absent or `null`; a value of another type is a fault.
    pub(crate) fn take<T: Kind>(&mut self, name: &'static str, faults: &mut Faults) -> Option<T> {
        let value = self.take_value(name).filter(|value| !value.is_null())?;
        let taken = serde_json::from_value(value).ok();
        if taken.is_none() {
            faults.add(&self.path(name), "wrong_type", format!("it is not {}", T::KIND));
        }
        taken
    }

    /// Takes a whole number that may be absent or `null`. Whether it lies in `range` is for the caller to judge; what is
    /// no such number at all is told with it.
    pub(crate) fn take_number(
        &mut self,
        name: &'static str,
        range: &RangeInclusive<u32>,
        faults: &mut Faults,
    ) -> Option<u32> {
        let value = self.take_value(name).filter(|value| !value.is_null())?;
        let taken = whole_number(&value).and_then(|number| u32::try_from(number).ok());
        if taken.is_none() {
            let message = format!("it is not a whole number from {} to {}", range.start(), range.end());
            faults.add(&self.path(name), "wrong_type", message);
        }
        taken
    }

    /// Takes a field that must be there.
    pub(crate) fn require<T: Kind>(&mut self, name: &'static str, faults: &mut Faults) -> Option<T> {
        let path = self.path(name);
        let value = self.take(name, faults);
        if value.is_none() && !faults.mention(&path) {
            faults.add(&path, "missing_field", "it is required");
        }
        value
    }

    /// Takes an object within this one.
    pub(crate) fn take_object(&mut self, name: &'static str, faults: &mut Faults) -> Option<Self> {
        let map = self.take(name, faults)?;
        Some(Self { prefix: format!("{}.", self.path(name)), map, known: Vec::new() })
    }

    /// What nobody took, for a caller who does not call it a fault.
    pub(crate) fn left(self) -> BTreeMap<String, Value> {
        self.map
    }

    /// Ends the taking: fields that nobody took are faults.
    pub(crate) fn finish(self, faults: &mut Faults) {
        let known = self.known.join(", ");
        for name in self.map.keys() {
            let message = format!("there is no such field; known ones: {known}");
            faults.add(&self.path(name), "unknown_field", message);
        }
    }
}

/// Up to here a float is exact: 2 to the power of 53.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A whole number, also one written with a fraction of zero: to JSON Schema both are integers. None if it is no such number,
/// or one with a fraction that a float does not hold exactly.
pub(crate) fn whole_number(value: &Value) -> Option<i64> {
    let whole = |number: &f64| number.fract() == 0.0 && number.abs() <= EXACT;
    value
        .as_i64()
        .or_else(|| value.as_f64().filter(whole).and_then(|number| format!("{number:.0}").parse().ok()))
}

/// A JSON object in which no field comes twice: of two, one would be dropped silently.
struct Object(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Object, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((name, value)) = access.next_entry::<String, Value>()? {
            if map.contains_key(&name) {
                return Err(A::Error::custom(format!("the field \"{}\" comes twice", name.escape_debug())));
            }
            map.insert(name, value);
        }
        Ok(Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_may_be_written_with_a_fraction_of_zero_and_no_other() {
        let cases = [
            ("7", Some(7)),
            ("-7.0", Some(-7)),
            ("5934.0", Some(5934)),
            ("1e3", Some(1000)),
            ("9007199254740992.0", Some(9_007_199_254_740_992)),
            ("9007199254740994.0", None),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("7.5", None),
            ("\"7\"", None),
            ("null", None),
        ];
        for (text, number) in cases {
            assert_eq!(whole_number(&serde_json::from_str(text).unwrap()), number, "{text}");
        }
    }
}
