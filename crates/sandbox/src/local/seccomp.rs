//! stub
pub(crate) fn filters() -> Result<Vec<Vec<u8>>, std::io::Error> {
    Ok(vec![])
}
