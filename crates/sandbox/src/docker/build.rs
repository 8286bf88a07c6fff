//! Builds the default sandbox image through the engine's build endpoint, the classic builder: no client and no plug-in needed.

use std::collections::HashMap;
use std::time::Duration;

use bollard::body_full;
use bollard::errors::Error;
use bollard::models::BuildInfo;
use bollard::query_parameters::{BuildImageOptions, BuilderVersion};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::DockerEngine;
use super::fault::{Fault, unavailable};
use super::images::LABEL_BUILT;
use crate::{BoxError, EngineError, SpecError, check_image_name};

/// The default image. Its tag counts the versions of [`DOCKERFILE`], so that a new one is not mistaken for an old one.
pub const DEFAULT_IMAGE: &str = "caisson-sandbox:1";
/// The default image's Dockerfile.
pub const DOCKERFILE: &str = include_str!("../../../../deploy/image/Dockerfile");
/// What the default image is made from if it can be pulled.
pub const DEFAULT_BASE: &str = "debian:bookworm-slim";
/// What `deploy/image/make-base.sh` makes where nothing can be pulled.
pub const LOCAL_BASE: &str = "caisson-base:bookworm";
/// Time limit of a whole build, in seconds.
pub const BUILD_TIMEOUT_S: u64 = 30 * 60;
/// Time limit between two lines of a build's output, in seconds; a pull and a slow mirror are silent for long.
pub const BUILD_SILENCE_S: u64 = 10 * 60;
/// What a failed build's error repeats of its output, in lines; the progress had them all.
const ERROR_LINES: usize = 12;
/// A line of a build's output is broken once it has as many bytes.
const LINE_BYTES: usize = 64 * 1024;

/// An image to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBuild {
    /// The text of the Dockerfile; nothing else is in the build's context.
    pub dockerfile: String,
    /// What the image is called when it is done.
    pub tag: String,
    /// The build argument `BASE`.
    pub base: String,
    /// Other build arguments, such as `HTTP_PROXY`, which the engine knows without a declaration.
    pub arguments: Vec<(String, String)>,
}

impl ImageBuild {
    /// The default image, made from `base`.
    #[must_use]
    pub fn default_image(base: &str) -> Self {
        Self {
            dockerfile: DOCKERFILE.to_owned(),
            tag: DEFAULT_IMAGE.to_owned(),
            base: base.to_owned(),
            arguments: Vec::new(),
        }
    }

    fn options(&self) -> BuildImageOptions {
        let base = ("BASE".to_owned(), self.base.clone());
        let arguments: HashMap<String, String> = self.arguments.iter().cloned().chain([base]).collect();
        BuildImageOptions {
            dockerfile: "Dockerfile".to_owned(),
            t: Some(self.tag.clone()),
            buildargs: Some(arguments),
            labels: Some(HashMap::from([(LABEL_BUILT.to_owned(), self.tag.clone())])),
            rm: true,
            forcerm: true,
            version: BuilderVersion::BuilderV1,
            ..Default::default()
        }
    }

    /// A tar archive with the Dockerfile alone; its time is fixed, so that the same text is the same context.
    fn context(&self) -> std::io::Result<Vec<u8>> {
        let mut header = tar::Header::new_ustar();
        header.set_size(self.dockerfile.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_data(&mut header, "Dockerfile", self.dockerfile.as_bytes())?;
        archive.into_inner()
    }
}

impl DockerEngine {
    /// Builds an image, and hands every line of the build's output to `progress`.
    ///
    /// # Errors
    /// [`EngineError::BadSpec`] if the tag or base is no image name, [`EngineError::BaseMissing`] if the base is not on
    /// the engine and could not be pulled, [`EngineError::BuildFailed`], and the general ones.
    /// # Cancel safety
    /// If dropped, the engine gives up the build; the tag is set at the very end or not at all.
    pub async fn build_image(
        &self,
        build: &ImageBuild,
        progress: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), EngineError> {
        check_image_name(&build.tag).map_err(SpecError::from)?;
        let base_present = self.image_present(&build.base).await?;
        let whole = Duration::from_secs(BUILD_TIMEOUT_S);
        let outcome = timeout(whole, self.follow_build(build, progress)).await;
        match outcome.unwrap_or_else(|elapsed| Err(self.too_slow(elapsed.into()))) {
            // The engine has many words for "cannot pull"; that the base is still not there says it better.
            Err(EngineError::BuildFailed { message, .. })
                if !base_present && !self.image_present(&build.base).await? =>
            {
                Err(EngineError::BaseMissing { base: build.base.clone(), message })
            }
            result => result,
        }
    }

    async fn follow_build(
        &self,
        build: &ImageBuild,
        progress: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), EngineError> {
        let failed = |message| EngineError::BuildFailed { image: build.tag.clone(), message };
        let context = build.context().map_err(|error| failed(error.to_string()))?;
        let client = self.client(BUILDING)?;
        let mut answers = client.build_image(build.options(), None, Some(body_full(context.into())));
        let mut output = Output::default();
        loop {
            let silence = Duration::from_secs(BUILD_SILENCE_S);
            match timeout(silence, answers.next()).await.map_err(|elapsed| self.too_slow(elapsed.into()))? {
                None => break,
                Some(Ok(info)) => output.take(&info, progress),
                Some(Err(Error::DockerStreamError { error })) => {
                    output.finish_line(progress);
                    return Err(failed(output.failure(&error)));
                }
                Some(Err(error)) => return Err(self.broken_build(error, &failed)),
            }
        }
        output.finish_line(progress);
        // A stream that ends early, with the engine, has no error in it.
        if self.image_present(&build.tag).await? && output.made {
            Ok(())
        } else {
            Err(failed(output.failure("the engine's output ended before the image was made")))
        }
    }

    fn broken_build(&self, error: Error, failed: &impl Fn(String) -> EngineError) -> EngineError {
        match Fault::read(BUILDING, &self.host, error) {
            Fault::Status { message, .. } => failed(message),
            Fault::Error(error) => error,
        }
    }

    fn too_slow(&self, source: BoxError) -> EngineError {
        unavailable(BUILDING, &self.host, source)
    }
}

const BUILDING: &str = "building an image";

/// What a build has said so far.
#[derive(Debug, Default)]
struct Output {
    /// The begun line: the engine sends pieces of lines.
    line: String,
    last_lines: std::collections::VecDeque<String>,
    made: bool,
}

impl Output {
    fn take(&mut self, info: &BuildInfo, progress: &mut (dyn FnMut(&str) + Send)) {
        self.made |= info.aux.is_some();
        if let Some(text) = &info.stream {
            for piece in text.split_inclusive('\n') {
                self.line.push_str(piece.trim_end_matches(['\n', '\r']));
                if piece.ends_with('\n') || self.line.len() >= LINE_BYTES {
                    self.finish_line(progress);
                }
            }
        }
        if let Some(status) = &info.status {
            self.finish_line(progress);
            let layer = info.id.as_deref().map(|id| format!("{id}: ")).unwrap_or_default();
            self.line = format!("{layer}{status}");
            self.finish_line(progress);
        }
    }

    fn finish_line(&mut self, progress: &mut (dyn FnMut(&str) + Send)) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return;
        }
        progress(&line);
        self.last_lines.push_back(line);
        if self.last_lines.len() > ERROR_LINES {
            self.last_lines.pop_front();
        }
    }

    fn failure(&self, error: &str) -> String {
        let lines: Vec<&str> = self.last_lines.iter().map(String::as_str).collect();
        if lines.is_empty() {
            error.to_owned()
        } else {
            format!("{error}; it said last:\n{}", lines.join("\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_an_end_is_broken_at_its_bound() {
        let (mut output, mut lengths) = (Output::default(), Vec::new());
        let piece = BuildInfo { stream: Some("x".repeat(LINE_BYTES / 2)), ..BuildInfo::default() };
        for _ in 0..4 {
            output.take(&piece, &mut |line| lengths.push(line.len()));
        }
        assert_eq!(lengths, [LINE_BYTES, LINE_BYTES]);
    }

    #[test]
    fn pieces_of_lines_and_the_progress_of_a_pull_become_lines() {
        let (mut output, mut lines) = (Output::default(), Vec::new());
        let stream = |text: &str| BuildInfo { stream: Some(text.into()), ..BuildInfo::default() };
        let pull = BuildInfo {
            status: Some("Downloading".into()),
            id: Some("layer".into()),
            ..BuildInfo::default()
        };
        for info in [stream("Step 1"), stream("/2\nStep 2/2\r\nlast"), pull] {
            output.take(&info, &mut |line| lines.push(line.to_owned()));
        }
        assert_eq!(lines, ["Step 1/2", "Step 2/2", "last", "layer: Downloading"]);
    }
}
