//! Reading files of an image, or of the engine's machine, without running anything: a container is made, read through the
//! engine, and removed; it is never started.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};
use bollard::query_parameters::{
    CreateContainerOptions, DownloadFromContainerOptions, RemoveContainerOptions,
};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::fault::{Fault, NOT_FOUND, unavailable};
use super::{DockerEngine, READ_TIMEOUT_S};
use crate::{EngineError, SpecError, check_image_name};

/// Most bytes of one file or directory of an image that are read.
pub const IMAGE_FILE_BYTES: usize = 64 * 1024 * 1024;

/// The image that a container was made to read.
const LABEL_READS: &str = "caisson.reads";
const READING: &str = "reading an image's files";
/// Where a file of the engine's machine is mounted to be read.
const SEEN_AT: &str = "/caisson-probe";

impl DockerEngine {
    /// Reads what stands at each absolute `path` in an image: a file, or all files of a directory. What is not there is left out.
    /// Links are not followed.
    ///
    /// # Errors
    /// [`EngineError::BadSpec`] if `image` is no image name, [`EngineError::ImageMissing`], [`EngineError::BadReply`] if there is
    /// more than [`IMAGE_FILE_BYTES`] at a path, and the general ones.
    /// # Cancel safety
    /// If dropped, a container that was never started may stay; it has the label `caisson.reads`.
    pub async fn image_files(&self, image: &str, paths: &[&str]) -> Result<Vec<Vec<u8>>, EngineError> {
        self.read_in(image, Vec::new(), paths).await
    }

    /// Reads a file as the engine finds it when it is told to mount `file`; none if there is no such file for it. An engine
    /// looks for a path on its own machine, whatever the caller has at that path.
    ///
    /// # Errors
    /// As [`DockerEngine::image_files`].
    /// # Cancel safety
    /// As [`DockerEngine::image_files`].
    pub async fn file_as_mounted(&self, image: &str, file: &Path) -> Result<Option<Vec<u8>>, EngineError> {
        let mount = Mount {
            typ: Some(MountType::BIND),
            source: file.to_str().map(str::to_owned),
            target: Some(SEEN_AT.to_owned()),
            read_only: Some(true),
            ..Mount::default()
        };
        match self.read_in(image, vec![mount], &[SEEN_AT]).await {
            Ok(files) => Ok(files.into_iter().next()),
            // What is to be mounted is not there: the answer is of the engine's, not a fault of the request.
            Err(EngineError::Refused { message, .. }) if message.contains("bind source path") => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read_in(
        &self,
        image: &str,
        mounts: Vec<Mount>,
        paths: &[&str],
    ) -> Result<Vec<Vec<u8>>, EngineError> {
        check_image_name(image).map_err(SpecError::from)?;
        // Whatever the image would run, it is not run; and there must be something, or the engine refuses.
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            cmd: Some(vec!["never-started".to_owned()]),
            // Whatever is left of it after a death is known by it.
            labels: Some(HashMap::from([(LABEL_READS.to_owned(), image.to_owned())])),
            host_config: Some(HostConfig {
                network_mode: Some("none".to_owned()),
                mounts: Some(mounts),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let made = self
            .change(READING, |docker| async move {
                docker.create_container(None::<CreateContainerOptions>, body).await
            })
            .await;
        let container = match made {
            Ok(answer) => answer.id,
            Err(fault) if fault.code() == Some(NOT_FOUND) => {
                return Err(EngineError::ImageMissing { image: image.to_owned() });
            }
            Err(fault) => return Err(fault.into()),
        };
        let read = Box::pin(self.read_all(&container, paths)).await;
        let options = RemoveContainerOptions { force: true, v: true, ..Default::default() };
        let removed = self
            .change(READING, |docker| async move { docker.remove_container(&container, Some(options)).await })
            .await;
        let files = read?;
        removed?;
        Ok(files)
    }

    async fn read_all(&self, container: &str, paths: &[&str]) -> Result<Vec<Vec<u8>>, EngineError> {
        let mut files = Vec::new();
        let broken =
            |error: std::io::Error| EngineError::BadReply { operation: READING, source: error.into() };
        for path in paths {
            match self.archive(container, path).await {
                Ok(archive) => files.append(&mut unpack(&archive).map_err(broken)?),
                Err(Fault::Status { code: NOT_FOUND, .. }) => {}
                Err(fault) => return Err(fault.into()),
            }
        }
        Ok(files)
    }

    async fn archive(&self, container: &str, path: &str) -> Result<Vec<u8>, Fault> {
        let limit = Duration::from_secs(READ_TIMEOUT_S);
        let options = DownloadFromContainerOptions { path: path.to_owned() };
        let mut pieces = Box::pin(self.client(READING)?.download_from_container(container, Some(options)));
        let mut archive = Vec::new();
        loop {
            let piece = timeout(limit, pieces.next()).await;
            let piece =
                piece.map_err(|elapsed| Fault::Error(unavailable(READING, &self.host, elapsed.into())))?;
            match piece {
                None => return Ok(archive),
                Some(Ok(piece)) => archive.extend_from_slice(&piece),
                Some(Err(error)) => return Err(read_fault(&self.host, error)),
            }
            if archive.len() > IMAGE_FILE_BYTES {
                let source = format!("there are more than {IMAGE_FILE_BYTES} bytes at {path}").into();
                return Err(Fault::Error(EngineError::BadReply { operation: READING, source }));
            }
        }
    }
}

fn read_fault(host: &str, error: Error) -> Fault {
    Fault::read(READING, host, error)
}

/// The regular files of a tar archive.
fn unpack(archive: &[u8]) -> std::io::Result<Vec<Vec<u8>>> {
    let mut files = Vec::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.push(bytes);
        }
    }
    Ok(files)
}
