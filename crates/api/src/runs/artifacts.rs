//! What was kept for a run: the list, each file, and the patch.

use std::path::{Component, Path, PathBuf};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use caisson_domain::artifacts::SharedArtifacts;
use caisson_domain::checks::{Check, stands};
use caisson_domain::id::RunId;
use caisson_domain::principal::Principal;
use caisson_store::Artifact;
use http::{HeaderMap, HeaderName, header};
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::view::{ArtifactList, ArtifactView};
use crate::auth::Reader;
use crate::extract::{ArtifactPath, NoParams, RunPath, unknown_run};
use crate::negotiate::{BYTES, DIFF, choose};
use crate::problem::{ApiError, Problem};
use crate::state::App;

/// The artifact that is the run's work as a patch.
pub(crate) const DIFF_ARTIFACT: &str = "diff.patch";

/// Get a run's patch
///
/// What the run changed, from its base commit to its last one.
#[utoipa::path(
    get, path = "/v1/runs/{id}/diff", tag = "runs", operation_id = "get_diff",
    params(("id" = String, Path, description = "The run's id")),
    responses(
        (status = 200, description = "The patch", body = String, content_type = "text/x-diff"),
        (status = 404, description = "No such run, or it has no patch (yet)", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Another server keeps it, in a directory that this one has not", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn get_diff(
    State(app): State<App>,
    Reader(caller): Reader,
    RunPath(id): RunPath,
    _: NoParams,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    choose(&headers, &[DIFF])?;
    let artifact = find(&app, &caller, &id, DIFF_ARTIFACT).await?.ok_or_else(|| ApiError::Unknown {
        code: "no_diff",
        detail: "the run has no patch; there is one after it has changed something and published it"
            .to_owned(),
    })?;
    let body = open(&app, &artifact).await?;
    let headers = [
        (header::CONTENT_TYPE, format!("{DIFF}; charset=utf-8")),
        (header::CONTENT_LENGTH, artifact.size_bytes.to_string()),
    ];
    Ok((headers, body).into_response())
}

/// List a run's artifacts
#[utoipa::path(
    get, path = "/v1/runs/{id}/artifacts", tag = "runs", operation_id = "list_artifacts",
    params(("id" = String, Path, description = "The run's id")),
    responses(
        (status = 200, description = "The artifacts by name", body = ArtifactList),
        (status = 404, description = "The project has no such run", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list_artifacts(
    State(app): State<App>,
    Reader(caller): Reader,
    RunPath(id): RunPath,
    _: NoParams,
) -> Result<Json<ArtifactList>, ApiError> {
    app.store().run(&caller.project, &id).await?.ok_or_else(unknown_run)?;
    let artifacts = app.store().artifacts(&id).await?;
    Ok(Json(ArtifactList { items: artifacts.into_iter().map(ArtifactView::from).collect() }))
}

/// Get an artifact
#[utoipa::path(
    get, path = "/v1/runs/{id}/artifacts/{name}", tag = "runs", operation_id = "get_artifact",
    params(
        ("id" = String, Path, description = "The run's id"),
        ("name" = String, Path, description = "The artifact's name"),
    ),
    responses(
        (status = 200, description = "The bytes", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 404, description = "No such run or artifact", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Another server keeps it, in a directory that this one has not", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn get_artifact(
    State(app): State<App>,
    Reader(caller): Reader,
    ArtifactPath(id, name): ArtifactPath,
    _: NoParams,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    choose(&headers, &[BYTES])?;
    let artifact = find(&app, &caller, &id, &name).await?.ok_or_else(|| ApiError::Unknown {
        code: "unknown_artifact",
        detail: "the run has no such artifact".to_owned(),
    })?;
    let body = open(&app, &artifact).await?;
    Ok((download(&artifact.name, artifact.size_bytes), body).into_response())
}

/// What has a browser save bytes of somebody's under their name, and never show or run them.
pub(crate) fn download(name: &str, size_bytes: i64) -> [(HeaderName, String); 3] {
    let (kind, shown) = if stands(Check::AnswersAreData) {
        (BYTES, disposition(name))
    } else {
        ("text/html", "inline".to_owned())
    };
    [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CONTENT_LENGTH, size_bytes.to_string()),
        (header::CONTENT_DISPOSITION, shown),
    ]
}

async fn find(app: &App, caller: &Principal, run: &RunId, name: &str) -> Result<Option<Artifact>, ApiError> {
    app.store().run(&caller.project, run).await?.ok_or_else(unknown_run)?;
    Ok(app.store().artifact(run, name).await?)
}

/// Opens the artifact's file for sending, as long as the store says it is. The kept bytes are the agent's, the path is
/// ours: it is checked all the same, since a wrong one would give a file of the host away.
///
/// # Errors
/// [`ApiError::Conflict`] if a server has the file whose directory is not here. [`ApiError::Internal`] if the path leaves the directory of artifacts, or what is there is no file of that size.
async fn open(app: &App, artifact: &Artifact) -> Result<Body, ApiError> {
    let path = below(&directory(app, artifact), &artifact.path)
        .ok_or_else(|| ApiError::internal(format!("artifact {} is outside its directory", artifact.id)))?;
    let found = match tokio::fs::symlink_metadata(&path).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(not_found(app, artifact).await?);
        }
        found => found.map_err(ApiError::internal)?,
    };
    let is_file = found.is_file();
    let size_bytes = u64::try_from(artifact.size_bytes).map_err(ApiError::internal)?;
    let file = File::open(&path).await.map_err(ApiError::internal)?;
    let found_bytes = file.metadata().await.map_err(ApiError::internal)?.len();
    if !is_file || found_bytes != size_bytes {
        return Err(ApiError::internal(format!("artifact {} is no file of {size_bytes} bytes", artifact.id)));
    }
    Ok(Body::from_stream(ReaderStream::new(file.take(size_bytes))))
}

/// Where the server has its artifacts that keeps this one: of another one that is here if they share a directory.
fn directory(app: &App, artifact: &Artifact) -> PathBuf {
    let config = app.config();
    match (&config.shared_artifacts, &artifact.server) {
        (Some(shared), Some(keeper)) if is_elsewhere(app, artifact) => shared.of(keeper),
        (Some(_) | None, _) => config.artifacts_dir.clone(),
    }
}

/// A file of this server's own that is not there is lost, and no other server has it.
fn is_elsewhere(app: &App, artifact: &Artifact) -> bool {
    app.store().is_elsewhere(artifact.server.as_ref(), app.config().server.as_ref())
}

/// Why a file is not there: it is lost, if it should be; else a server has it whose directory is not here.
async fn not_found(app: &App, artifact: &Artifact) -> Result<ApiError, ApiError> {
    let lost = || ApiError::internal(format!("the file of artifact {} is not there", artifact.id));
    let shared = app.config().shared_artifacts.as_ref();
    if let Some(shared) = shared {
        let text = tokio::fs::read_to_string(SharedArtifacts::id_file(&shared.directory)).await;
        if !text.is_ok_and(|text| shared.is_named(&text)) {
            return Ok(ApiError::internal("the shared directory of artifacts is not there; is it mounted?"));
        }
    }
    if !is_elsewhere(app, artifact) {
        return Ok(lost());
    }
    let keeper = match &artifact.server {
        Some(keeper) => app.store().artifacts_id(keeper).await?,
        None => None,
    };
    // It keeps its files where this one looked.
    let is_here = keeper.is_some() && keeper.as_deref() == shared.map(|shared| shared.id.as_str());
    Ok(if is_here { lost() } else { elsewhere(artifact) })
}

/// Its file is on the machine of the run's server.
fn elsewhere(artifact: &Artifact) -> ApiError {
    let name = &artifact.name;
    let keeper = artifact.server.as_ref().map_or("the server that the run was on".to_owned(), |keeper| {
        format!("server {keeper}, which the run was on")
    });
    let detail = format!(
        "\"{name}\" is kept by {keeper}, in a directory that this server has not; ask that server's API, or have all servers share \
         one directory (artifacts_dir)"
    );
    ApiError::Conflict { code: "artifact_elsewhere", detail }
}

/// The path if it stays in `directory`; a relative one is meant from there.
fn below(directory: &Path, path: &str) -> Option<PathBuf> {
    let path = directory.join(path);
    let rest = path.strip_prefix(directory).ok()?;
    let plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && rest.components().next().is_some()).then_some(path)
}

/// Makes a browser save the file under its name and never show it (RFC 6266, names encoded as in RFC 8187).
fn disposition(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.bytes().all(plain) {
        return format!("attachment; filename=\"{name}\"");
    }
    let mut encoded = String::new();
    for byte in name.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push_str(&hex::encode_upper([byte]));
        }
    }
    format!("attachment; filename*=UTF-8''{encoded}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_the_directory_are_sent() {
        let directory = Path::new("/state/artifacts");
        for good in ["run/x", "/state/artifacts/run/x"] {
            assert_eq!(below(directory, good), Some(PathBuf::from("/state/artifacts/run/x")), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "run/../../x", "/state/artifacts", "/state/artifacts/../x"] {
            assert_eq!(below(directory, bad), None, "{bad}");
        }
    }

    #[test]
    fn a_name_cannot_break_out_of_the_header() {
        assert_eq!(disposition("diff.patch"), "attachment; filename=\"diff.patch\"");
        assert_eq!(disposition("a\"\r\nä"), "attachment; filename*=UTF-8''a%22%0D%0A%C3%A4");
    }
}
